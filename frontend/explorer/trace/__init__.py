"""The view of one trace, or of two side by side."""
