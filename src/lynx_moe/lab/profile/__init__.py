"""`lynx-moe profile`: what one model tolerates, observation by observation; measured, drawn, and said in plain words."""
