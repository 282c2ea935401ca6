"""Reading many images of a catalog at once: facets, labels, points of a map, and exports."""
