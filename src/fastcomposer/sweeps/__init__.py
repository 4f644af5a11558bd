"""Sweeps and searches: running their jobs, and reporting them."""
