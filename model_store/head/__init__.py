"""Fit the last layer of a version again, on stored fc7 vectors, and publish the result; without torch."""
