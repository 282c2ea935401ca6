"""The paper's CIFAR-10 nets and experiments."""
