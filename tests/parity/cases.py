"""Parity cases: what a reference implementation gave at a tiny size, and the rule that makes the weights it had.

They come from `tests/parity/data`, or from the folder that EIS_PARITY names. Such a folder may hold only `case.json`
and `expected.safetensors` of each case: the rule and the key lists are always those of this repository.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.parity import weights

DATA = Path(__file__).with_name("data")
KNOWN = tuple(sorted(folder.name for folder in DATA.iterdir() if (folder / "case.json").is_file()))


@dataclass(frozen=True)
class ParityCase:
    """One case. `salt` (of its `case.json`) is the draw; every tensor and input below is of that draw."""

    name: str
    folder: Path

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The whole `case.json`."""
        return json.loads((self.folder / "case.json").read_text("utf-8"))

    @property
    def salt(self) -> str:
        """What stands before each key when its numbers are drawn."""
        return self.config.get("salt", "")

    @cached_property
    def expected(self) -> Mapping[str, torch.Tensor]:
        """What the reference gave, by name; float32."""
        return load_file(self.folder / "expected.safetensors")

    @property
    def checkpoint_keys(self) -> Mapping[str, tuple[int, ...]]:
        """Key -> shape of the published file at full size."""
        return self.keys_of("checkpoint_keys.json")

    def keys_of(self, file: str) -> Mapping[str, tuple[int, ...]]:
        """Key -> shape as a list of this repository says."""
        return {key: tuple(shape) for key, shape in json.loads((DATA / self.name / file).read_text("utf-8")).items()}

    def tensor(self, key: str, shape: tuple[int, ...] | list[int]) -> torch.Tensor:
        """The weight of this key."""
        return weights.tensor(key, tuple(shape), self.salt)

    def tensors(self, keys: Mapping[str, Any], prefix: str = "") -> dict[str, torch.Tensor]:
        """The weights of a mapping key -> shape; keys are drawn with `prefix` before them, and answered without."""
        return {key: self.tensor(prefix + key, shape) for key, shape in keys.items()}

    def inputs(self, name: str, shape: tuple[int, ...] | list[int]) -> torch.Tensor:
        """The standard-normal input of this name."""
        return weights.inputs(name, tuple(shape), self.salt)

    def fill_(self, module: torch.nn.Module, prefix: str = "") -> torch.nn.Module:
        """Fill a module in place from its own keys, each with `prefix` before it; it answers in eval mode."""
        with torch.no_grad():
            for key, value in module.state_dict(keep_vars=True).items():
                if value.is_floating_point():
                    value.copy_(self.tensor(prefix + key, tuple(value.shape)))
        return module.eval()

    def with_salt(self, salt: str) -> "ParityCase":
        """The same case drawn anew; nothing is expected of it."""
        again = ParityCase(self.name, self.folder)
        again.__dict__["config"] = {**self.config, "salt": salt}
        again.__dict__["expected"] = {}
        return again


def source() -> Path:
    """The folder that cases are read from."""
    named = os.environ.get("EIS_PARITY")
    return Path(named) if named else DATA


def found(folder: Path) -> tuple[str, ...]:
    """The names of the cases that a folder holds; a case that this repository does not know is an error."""
    names = tuple(sorted(path.parent.name for path in folder.glob("*/case.json"))) if folder.is_dir() else ()
    if not names:
        raise LookupError("no parity case is there: EIS_PARITY must name a folder of folders with a case.json each")
    unknown = sorted(set(names) - set(KNOWN))
    if unknown:
        raise LookupError(f"cases that no test knows: {', '.join(unknown)}")
    return names


def find(name: str) -> ParityCase | None:
    """The case of this name; None where the folder of EIS_PARITY leaves it out."""
    assert name in KNOWN, f"{name} is no case of tests/parity/data"
    folder = source()
    return ParityCase(name, folder / name) if name in found(folder) else None
