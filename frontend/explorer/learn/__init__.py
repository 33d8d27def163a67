"""The view of the exercises and of the mystery game."""
