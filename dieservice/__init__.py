"""die-service: keeps the catalogue of dice."""
