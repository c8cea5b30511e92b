"""A multi-token-prediction layer, trained on top of a frozen DeepSeek-V3 of the testbed, as vLLM's method `mtp` takes it."""
