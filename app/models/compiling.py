"""Regional compilation: torch.compile for the UNet's repeated blocks, where the operator asked for it.

A block is compiled at its first call for a size, which takes from seconds to a minute; what came of it is kept on disk
and found again by the next worker. Compiled code belongs to the modules as they were loaded: while additions are worn
the blocks run as they are, because every other set of LoRAs would be compiled anew.
"""

import os
import shutil
from pathlib import Path

import torch

from app.errors import DependencyMissing

FOLDER = "compiled"
"""Under EIS_HOME."""
COMPILERS = ("c++", "g++", "clang++")
SIZES_KEPT = 64
"""Versions of one block's code that are kept before the rest runs uncompiled: widths, batches and number formats."""


def prepare(home: Path) -> None:
    """Keep compiled code under the home; `DependencyMissing` where there is no compiler."""
    named = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ((named,) if named else COMPILERS)):
        raise DependencyMissing("EIS_COMPILE needs a C++ compiler: on Debian, apt-get install g++.", package="g++")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(home / FOLDER))
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SIZES_KEPT)


class CompiledBlocks:
    """A module's repeated blocks, whose compiled code is put in and taken out without being lost."""

    def __init__(self, module: torch.nn.Module) -> None:
        names = getattr(module, "_repeated_blocks", None) or ()
        self._blocks = [part for part in module.modules() if type(part).__name__ in names]
        self._codes: list[object] = []

    def use(self, wanted: bool) -> None:
        """Run compiled code from now on, or the blocks as they are."""
        if wanted and not self._codes:
            for block in self._blocks:
                block.compile()
            self._codes = [block._compiled_call_impl for block in self._blocks]
        for block, code in zip(self._blocks, self._codes, strict=False):
            block._compiled_call_impl = code if wanted else None
