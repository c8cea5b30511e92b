"""`lynx-moe demo`: quality and speed of the default against the model's own routing, in minutes."""
