"""How far an image is from a version's training images, so that foreign images are recognized."""
