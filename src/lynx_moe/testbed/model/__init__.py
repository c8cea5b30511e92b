"""The families' architectures and how their experts run in training."""
