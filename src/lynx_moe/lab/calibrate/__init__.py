"""`lynx-moe calibrate`: what calibrated policies need of a model, in one pass."""
