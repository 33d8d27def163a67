"""The exercises in the page."""
