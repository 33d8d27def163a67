"""The registry of everything observable (``otel/registry/``): read, held against a running lab, and documented."""
