"""The built-in recipes (.toml), and the values that they leave open."""
