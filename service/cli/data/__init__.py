"""`fc7 data`: check, split and prepare data sets."""
