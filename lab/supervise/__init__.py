"""Start, keep and stop a lab: its services, database and engines."""
