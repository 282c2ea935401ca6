"""Commands that need torch: data, train, evaluate, export, import, paper."""
