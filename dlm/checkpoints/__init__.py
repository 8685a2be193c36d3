"""Loading and saving of checkpoints: where one lies (`source`), which family it belongs to (`table`), and how that is read."""
