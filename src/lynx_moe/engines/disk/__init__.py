"""Experts that stay on a disk until a step needs them: no engine is known here."""
