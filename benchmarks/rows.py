"""A line of a benchmark's table."""

Row = tuple[str, str, str]
"""What was measured, its figure, and what stands beside it."""
