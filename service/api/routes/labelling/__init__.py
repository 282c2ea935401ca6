"""Routes for labeling: suggestions, the map of the index, and Label Studio."""
