"""What is said of a trained family: router health, scores, cards."""
