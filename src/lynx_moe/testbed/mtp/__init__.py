"""A multi-token-prediction layer, trained on top of a frozen DeepSeek-V3 of the testbed, for vLLM's method `mtp`."""
