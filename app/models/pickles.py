"""The child process that reads a published pickle and writes its tensors as safetensors; started by `conversion.py`.

Invariant: no pickle is opened outside this process, and not by its own code: torch's restricted reader knows tensors
and plain containers, and anything else in the file is refused by name. The child writes one file, no larger than the
pickle, says one line of JSON, and ends when the process that asked does. The price is an import of torch for each.
"""

import argparse
import json
import os
import re
import resource
import sys
import threading
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from app.errors import InvalidRequest, ServiceError
from app.models.tensor_files import Entry, header_of, narrowed, ordered

HEADER_ROOM = 16 * 2**20
DEEPEST = 8
WRAPPERS = ("state_dict", "model", "module")
"""Under which of these a training script puts the weights, beside the state of its own."""
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_CODE = re.compile(r"GLOBAL ([\w.]+)")
"""How the restricted reader tells what it was asked to call."""


def convert(source: Path, target: Path, *, keep: str = "", to_16_bits: bool = False) -> None:
    """Write the tensors of a pickle as safetensors, one at a time.

    Nested dictionaries become dotted names, a `module.` before every name goes, and of what is left only the names
    that begin with `keep` are kept. `InvalidRequest` where the file holds code, or nothing that can be kept.
    """
    tensors = {name: tensor for name, tensor in _named(_load(source)) if name.startswith(keep)}
    if not tensors:
        raise InvalidRequest("The pickle holds no tensors of the wanted names.")
    entries = []
    for name, tensor in tensors.items():
        dtype = "F16" if to_16_bits and tensor.dtype == torch.float32 else DTYPES.get(tensor.dtype)
        if dtype is None or tensor.layout != torch.strided:
            raise InvalidRequest(f"The pickle's tensor {name[:100]!r} is of a kind that is not stored.")
        entries.append(Entry(name, dtype, tuple(tensor.shape)))
    entries = ordered(entries)
    if sum(entry.bytes for entry in entries) > source.stat().st_size:
        raise InvalidRequest("The pickle's tensors claim more bytes than the file has.")
    with target.open("wb") as file:
        file.write(header_of(entries))
        for entry in entries:
            tensor = tensors.pop(entry.name).detach().contiguous()
            if DTYPES[tensor.dtype] != entry.dtype:
                file.write(narrowed(tensor.reshape(-1).numpy(), entry.name))
            elif tensor.numel():
                file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def _load(source: Path) -> Any:
    try:
        # Files of before torch 1.6 are no archives and cannot be mapped.
        return torch.load(source, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(source))
    except MemoryError:
        raise
    except Exception as error:
        found = _CODE.search(str(error))
        if found:
            raise InvalidRequest(
                f"The pickle asks for code of its own ({found[1][:100]}), which is never run."
            ) from None
        raise InvalidRequest("The pickle cannot be read as a checkpoint.") from None


def _named(content: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    found = dict(_flattened(content, "", 0))
    if found and all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): tensor for name, tensor in found.items()}
    yield from found.items()


def _flattened(content: Any, prefix: str, depth: int) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors by dotted name; numbers and texts beside them (a step count, a version) are no weights."""
    if isinstance(content, torch.Tensor):
        yield prefix.removesuffix("."), content
    elif isinstance(content, Mapping) and depth < DEEPEST:
        for key, value in content.items():
            yield from _flattened(value, f"{prefix}{key}.", depth + 1)
    elif isinstance(content, Mapping | list | tuple | set):
        raise InvalidRequest("The pickle is nested in another way than checkpoints are.")


def _end_with_the_one_that_asked() -> None:
    """The standard input is a pipe that nobody writes to: it ends when the process at its other end does."""

    def watch() -> None:
        os.read(sys.stdin.fileno(), 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """`SOURCE TARGET [--keep PREFIX] [--to-16-bits]`; one line of JSON says what went wrong."""
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--keep", default="")
    parser.add_argument("--to-16-bits", action="store_true")
    options = parser.parse_args()
    _end_with_the_one_that_asked()
    largest = options.source.stat().st_size + HEADER_ROOM
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch.set_num_threads(1)
    try:
        convert(options.source, options.target, keep=options.keep, to_16_bits=options.to_16_bits)
    except ServiceError as error:
        print(json.dumps({"message": error.message}))
    except OSError as error:
        print(json.dumps({"errno": error.errno}))
    else:
        print("{}")


if __name__ == "__main__":
    main()
