"""What ``dicelab up`` offers to the page of its lab, over a Unix socket: the exercises and the mystery game."""
