"""Before the engine: options, versions, connectors, and vLLM's command with the policy in it."""
