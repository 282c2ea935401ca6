"""Checks of everything that runs on an NVIDIA GPU: `make gpu-check`."""
