"""What a server tells: metrics from workers to /metrics."""
