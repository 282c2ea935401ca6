"""Tests of client/fc7_client against real servers."""
