"""What every method is compared with: the model's own routing, and a random choice."""
