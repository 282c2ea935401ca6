"""Export a trained run to ONNX and publish it as a version."""
