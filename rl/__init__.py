"""Reinforcement and preference learning of the diffusion model."""
