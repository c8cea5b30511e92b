"""While the model is built: every MoE layer gets its router; the rule of vLLM's own, and where experts live."""
