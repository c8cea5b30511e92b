"""In front of the engine: what requests may ask for, the prefix cache, the run-time switch."""
