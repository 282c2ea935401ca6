"""Vector search with FAISS on a CUDA device."""
