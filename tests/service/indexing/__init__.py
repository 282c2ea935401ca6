"""Tests of `service/indexing`."""
