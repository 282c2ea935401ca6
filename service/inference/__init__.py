"""Inference: loaded models, admission, batching and embedding."""
