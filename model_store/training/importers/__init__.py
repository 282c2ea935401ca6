"""Import public weight files (from Caffe, the ONNX model zoo or torchvision) as versions that can be served."""
