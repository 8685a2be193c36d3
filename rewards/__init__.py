"""Rewards and verifiers of finished samples, and reward models."""
