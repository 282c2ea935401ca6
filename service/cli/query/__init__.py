"""Commands that answer questions about images, from the local home and without a server."""
