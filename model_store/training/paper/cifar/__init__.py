"""The CIFAR-10 nets and experiments of the paper."""
