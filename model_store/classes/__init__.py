"""Classes of a model: their names, and the figures of a classifier."""
