"""`lynx-moe profile`: what one model tolerates, observation by observation; measured, drawn, said in plain words."""
