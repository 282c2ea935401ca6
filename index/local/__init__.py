"""The index on one machine: a SQLite catalog, and FAISS searchers that are updated with it."""
