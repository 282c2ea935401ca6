"""Run a version of a model: pixels in, probabilities and fc7 out."""
