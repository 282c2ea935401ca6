"""`fc7 mcp`."""
