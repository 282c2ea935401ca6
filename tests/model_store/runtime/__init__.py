"""Tests of `model_store/runtime`."""
