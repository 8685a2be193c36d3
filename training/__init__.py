"""What every training run shares: its directory, resume, metrics, optimiser, processes. Knows tensors only."""
