"""Tests of model_store.training.recipes."""
