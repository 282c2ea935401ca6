"""Many images at once: folders, archives, re-embedding, and builds on a Ray cluster."""
