"""What ``dicelab bench`` measures the services against. No service knows of it."""
