"""Index builds on a Ray cluster."""
