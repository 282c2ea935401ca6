"""Tests of `index/catalog`."""
