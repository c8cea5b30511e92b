"""`lynx-moe bench`, `guard-cost`: time per output token on published shapes, interleaved."""
