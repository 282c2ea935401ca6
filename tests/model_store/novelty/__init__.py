"""Tests of `model_store/novelty`."""
