"""A version on its way to another machine: an archive file, or values for a worker."""
