"""The search on a device, with FAISS's CPU index of float16 rows in place of its GPU index of float16 rows."""
