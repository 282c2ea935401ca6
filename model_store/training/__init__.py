"""Train, evaluate and export the nets of the 2012 paper. The only package that imports torch."""
