"""Starts, supervises and stops a lab: its services, database and engines."""
