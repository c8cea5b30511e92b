"""Before the engine: options, versions, SGLang's arguments, and its command with the policy in it."""
