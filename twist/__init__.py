"""Twists: learned log-potentials of unfinished text, their targets, and their training."""
