"""Twists: learned log-potentials of unfinished text, their targets, and what is learnt from them."""
