"""Pocket, the embedded model: the little world it draws, how it is trained, how it is measured, and its weights."""
