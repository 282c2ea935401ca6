"""Export a trained net to ONNX, publish it as a version, and add int8 and fp16 precisions."""
