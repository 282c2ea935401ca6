"""Tests of `index/search`."""
