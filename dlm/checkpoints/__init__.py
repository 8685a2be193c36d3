"""Loading and saving of checkpoints: location (`source`), family (`table`), and the reader of each family."""
