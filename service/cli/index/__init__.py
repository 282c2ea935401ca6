"""`fc7 index`: build, search and keep the image index."""
