"""What is said of files that are not what their row promises."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from safetensors import SafetensorError

from app.errors import InvalidRequest
from app.models.spec import ModelSpec


@contextmanager
def refusing(spec: ModelSpec, reason: str) -> Iterator[None]:
    """`InvalidRequest` with this reason where the block cannot open the model's files; a lack of memory stays one."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (OSError, SafetensorError, RuntimeError, KeyError, ValueError, StopIteration) as error:
        raise InvalidRequest(f"The model {spec.id!r} cannot be opened: {reason}.", model=spec.id) from error
