"""Tests of `model_store/training/paper/cifar`."""
