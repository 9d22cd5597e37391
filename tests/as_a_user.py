"""The environment of a process that a test starts as a user would."""

import os


def environment() -> dict[str, str]:
    """This process's, less what `make test` tells the allocator: it would hold back what a server gives back."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
