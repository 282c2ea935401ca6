"""`fc7 index`: build, inspect, copy and export the image index."""
