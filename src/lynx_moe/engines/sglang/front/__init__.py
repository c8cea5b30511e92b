"""Before and beside the steps: what a request may ask for, how the policy is switched, what is told."""
