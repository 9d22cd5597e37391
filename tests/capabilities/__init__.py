"""Capabilities on tiny real checkpoints."""
