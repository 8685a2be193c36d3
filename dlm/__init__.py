"""Frozen models (MaskedLM), noise schedules, and the decoding environment."""
