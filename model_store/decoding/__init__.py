"""Formats, colors and depths of image files: what `model_store.image` is built from."""
