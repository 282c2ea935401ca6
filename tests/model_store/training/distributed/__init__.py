"""Tests of `model_store/training/distributed`."""
