"""The service map."""
