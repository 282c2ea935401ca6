"""Training one net in several processes: data parallel, or with one tower per process."""
