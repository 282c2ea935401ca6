"""Train, evaluate and export the nets of the 2012 paper. No other package imports torch."""
