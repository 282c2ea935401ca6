"""The tables, figures and experiments of the 2012 paper."""
