"""The loop; where to unmask; what to write; reproducible draws."""
