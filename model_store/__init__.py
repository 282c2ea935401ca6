"""Models and pixels: decode an image, run a version of a model, keep versions on disk. Training lives in `training`."""
