"""Vector search in memory with FAISS: exact search, and search with short codes."""
