"""Helpers for tests of training: data sets, runs and files of weights."""
