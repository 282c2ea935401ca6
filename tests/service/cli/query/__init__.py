"""`fc7 classify` and other commands that answer questions about images."""
