"""Commands that measure: a file a room of the lab."""
