"""Tests of `model_store/training/importers`."""
