"""What request bodies contain: images, examples and vectors."""
