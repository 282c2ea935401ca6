"""From images to answers: loaded models, admission, batching and inference."""
