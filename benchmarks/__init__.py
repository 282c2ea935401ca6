"""Benchmarks to run by hand: `python -m benchmarks.<name>`. The packages do not import them."""
