"""Learned unmasking: policy networks, action distributions over positions, and what trains them."""
