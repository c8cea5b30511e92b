"""`lynx-moe evidence`: every quality table of README and docs/results, by the commands that make them."""
