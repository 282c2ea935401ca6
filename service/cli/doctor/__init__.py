"""`fc7 doctor`: checks of the machine, the installation and the home."""
