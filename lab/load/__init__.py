"""Load on a lab: users, rates, comparisons and their statistics."""
