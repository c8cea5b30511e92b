"""Where the decision is taken: one package or file per inference engine. Nothing below this package knows an engine."""
