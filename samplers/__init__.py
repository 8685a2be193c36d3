"""Decoding loops, unmasking rules, reward-guided decoders and particle filters."""
