"""The image index: images with their metadata and fc7 vectors, and search for similar ones."""
