"""Tests of `model_store/training/nets`."""
