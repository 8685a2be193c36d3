"""Rewards of finished samples: rules and judges."""
