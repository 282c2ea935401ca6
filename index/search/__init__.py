"""Vector search in memory with FAISS: exact, and with short codes."""
