"""Tests of `service/api/routes`."""
