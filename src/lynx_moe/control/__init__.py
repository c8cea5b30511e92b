"""What is decided between steps: which policy runs. Nothing here knows an engine."""
