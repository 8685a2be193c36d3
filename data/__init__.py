"""Data sets as Hugging Face `datasets`, puzzle generators and preference pairs."""
