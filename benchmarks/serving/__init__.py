"""Serving speed of fc7, compared with LitServe and with the upper bound of the machine."""
