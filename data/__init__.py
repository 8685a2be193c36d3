"""Data sets, tasks, puzzle generators and preference pairs."""
