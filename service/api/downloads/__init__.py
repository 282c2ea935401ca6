"""Downloads of folders: as one tar file, with an API key or with a link that expires."""
