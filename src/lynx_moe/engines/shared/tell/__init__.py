"""What servers share of telling: numbers from an engine's process to /metrics, and to its log."""
