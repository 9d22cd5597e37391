"""The garbage collector steps aside while modules are loaded."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """No collection inside; afterwards, what was made inside is passed over by the later ones.

    What imports make stays for good, and there is much of it: walking over it again and again took a sixth of the
    time until the server answers.
    """
    ran = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if ran:
            gc.enable()
