"""Measurements to run by hand: `python -m benchmarks.<name>`. Nothing of the product imports them."""
