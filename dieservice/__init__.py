"""die-service: knows which dice there are."""
