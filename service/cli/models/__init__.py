"""`fc7 models`: published versions."""
