"""dice-roller: rolls dice, one by one or many at once."""
