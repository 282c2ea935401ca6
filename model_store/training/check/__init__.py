"""Checks of a data set: copies, likely wrong labels, outliers and leaks between splits."""
