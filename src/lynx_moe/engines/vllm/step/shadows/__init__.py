"""Shadow steps: the model runs more than once on one step's inputs, and its next-token distributions are compared."""
