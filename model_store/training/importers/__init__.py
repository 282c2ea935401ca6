"""Import public weight files (Caffe's, the ONNX zoo's, torchvision's) as versions that can be served."""
