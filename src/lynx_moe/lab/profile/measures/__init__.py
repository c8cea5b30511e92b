"""What a profile measures: routing, sensitivity, denials, step times."""
