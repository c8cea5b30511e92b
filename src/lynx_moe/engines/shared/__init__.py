"""What engines share: layers, counts, recorded logits, figures that arrive late, metric families."""
