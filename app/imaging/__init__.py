"""Pixels only: PIL and numpy in and out."""
