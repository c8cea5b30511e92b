"""What engines that serve share of a step: its rows, what their requests ask, who decides, what was counted."""
