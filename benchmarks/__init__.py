"""Figures of this machine; never timed tests."""
