"""`fc7 codes`: binary codes."""
