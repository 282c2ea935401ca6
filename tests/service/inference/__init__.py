"""Tests of `service/inference`."""
