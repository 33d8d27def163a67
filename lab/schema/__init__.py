"""The registry of everything observable (``otel/registry/``): read, compared with a running lab, and documented."""
