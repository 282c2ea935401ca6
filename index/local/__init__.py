"""The index on one machine: the SQLite catalog and the FAISS searchers, kept in step."""
