"""Tests of API keys, origins of web pages, proxies and TLS."""
