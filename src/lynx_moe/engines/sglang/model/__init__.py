"""While the model is built, and in its layers: the rule of each router, and the change of its choice."""
