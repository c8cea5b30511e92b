"""Published rules that look at which experts are in memory."""
