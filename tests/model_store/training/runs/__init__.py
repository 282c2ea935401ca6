"""Tests of `model_store/training/runs`."""
