"""What a machine with a GPU is asked in a few minutes: `python -m lynx_moe.lab.gpu` (docs/guides/gpu.md).

Each step is a process of its own with a time limit and a record of its own, so one that fails costs the others nothing.
"""
