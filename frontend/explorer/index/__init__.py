"""The index of a run dir's files: a process of its own, started by ``sources.files``."""
