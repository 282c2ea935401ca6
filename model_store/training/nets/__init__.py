"""AlexNet and its variants."""
