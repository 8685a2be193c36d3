"""Common part of all training runs: directory, resume, metrics, optimizer, processes."""
