"""`lynx-moe speculation`: what drafts do to a trained model's answers and loads, with a policy and without."""
