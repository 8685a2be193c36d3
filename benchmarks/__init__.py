"""Benchmarks: each prints tables and ends with one line of flat JSON."""
