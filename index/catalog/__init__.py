"""The catalog of images: keys, metadata, pictures and vectors in SQLite."""
