"""How a family is trained: text, packing, loss, optimizers, the loop."""
