"""Twists: what is still to come, as a potential of a prefix; how they are learnt, and what bounds log Z."""
