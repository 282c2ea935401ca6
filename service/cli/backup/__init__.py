"""`fc7 backup ...`."""
