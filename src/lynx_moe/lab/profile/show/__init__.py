"""How a profile is drawn and worded."""
