"""The load generator, the collector and the reference services of ``dicelab bench``. No service imports them."""
