"""Training data: class folders, ILSVRC archives, shards, augmentation and loading."""
