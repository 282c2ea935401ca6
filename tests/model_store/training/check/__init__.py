"""Tests of `model_store/training/data`."""
