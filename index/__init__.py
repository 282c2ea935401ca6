"""The image index: which images there are, their fc7 vectors, and what is near what."""
