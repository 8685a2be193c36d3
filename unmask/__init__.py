"""Unmask: learned and reward-guided decoding of masked-diffusion language models."""
