"""Tests of `index/bulk/ray`."""
