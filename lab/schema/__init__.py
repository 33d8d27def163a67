"""Reads the registry of everything observable (``otel/registry/``), compares a lab with it, and documents it."""
