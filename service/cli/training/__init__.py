"""Commands for training and research: demo, data, train, evaluate, export, import, report, ablate, paper."""
