"""The HTTP service, its page, and the command line."""
