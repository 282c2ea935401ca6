"""The built-in recipes (.toml), the values that they leave open, and the warning if one does not learn."""
