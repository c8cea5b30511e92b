"""`lynx-moe eval`: lm-evaluation-harness tasks under policies, paired differences."""
