"""Load generator, collector and reference services of ``dicelab bench``. No service imports it."""
