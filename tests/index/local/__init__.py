"""Tests of `index/local`."""
