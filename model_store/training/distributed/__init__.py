"""Training on several processes: data parallel, and the paper's two towers."""
