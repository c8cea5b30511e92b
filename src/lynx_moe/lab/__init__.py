"""Measurements: every figure and table comes from a saved record, and can be drawn again from it."""
