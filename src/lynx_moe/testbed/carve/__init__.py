"""`lynx-moe testbed carve`: a mixture of experts cut out of a dense language model: a deep model with real text."""
