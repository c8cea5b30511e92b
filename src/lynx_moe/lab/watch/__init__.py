"""What a running server does, seen from outside: its /metrics, as frames in a terminal and as a Grafana dashboard."""
