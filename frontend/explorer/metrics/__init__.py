"""The view of figures."""
