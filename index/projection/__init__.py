"""Maps of an index: each image has a position in the plane, near the images that resemble it."""
