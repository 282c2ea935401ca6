"""Tests of `index/milvus`."""
