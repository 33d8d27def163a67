"""The list of recent traces."""
