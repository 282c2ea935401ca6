"""Recall, latency and memory of search, compared with other libraries."""
