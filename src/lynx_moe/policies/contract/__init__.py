"""The contract's machinery: what a policy is, the forms it takes, weights, groups, placement."""
