"""A line of a benchmark's table."""

Row = tuple[str, str, str]
"""What was measured, its figure, and what stands beside it."""


def left_out(what: str, why: str) -> Row:
    """The line of what was not measured here."""
    return what, "left out", why
