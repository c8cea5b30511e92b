"""`lynx-moe load`: what policies do to latency and throughput of a server, on the arrivals of a trace."""
