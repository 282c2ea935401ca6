"""Training data: class folders, ILSVRC archives, shards, loading and augmentation."""
