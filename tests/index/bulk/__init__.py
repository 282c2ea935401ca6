"""Tests of `index/bulk`."""
