"""The same decisions, fast: one file per kernel. The plain-torch policy is the definition that a kernel must equal."""
