"""`lynx-moe fidelity`: KL per token against the exact model, paired rows; twins compared."""
