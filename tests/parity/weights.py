"""Deterministic weights for the parity cases in this folder.

A parity case does not ship weights: it names a rule that makes them. Every parameter of a module is filled from its
own key, so two implementations that use the published checkpoint's key names and shapes hold the same numbers:

    fill_(module)                      # in place, float32
    tensor("layers.0.0.to_q.weight", (256, 256))

The rule: numpy's legacy RandomState (its stream is frozen) seeded with crc32 of the key, standard normal, float32;
matrices and kernels are scaled by 1/sqrt(fan_in), vectors whose key ends in `weight` (norm gains) become
1 + 0.1 x, every other vector 0.1 x, a running variance 1 + |0.1 x|. Nothing here needs a GPU or a network.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch


def tensor(key: str, shape: tuple[int, ...], salt: str = "") -> torch.Tensor:
    """Return the float32 tensor that the rule gives for `key` at `shape`; `salt` gives another, unrelated draw."""
    rng = np.random.RandomState(zlib.crc32((salt + key).encode()))
    x = torch.from_numpy(rng.standard_normal(tuple(shape)).astype(np.float32))
    if len(shape) >= 2:
        return x / math.sqrt(max(1, math.prod(shape[1:])))
    if key.endswith("running_var"):
        return 1 + (0.1 * x).abs()
    if key.endswith("weight"):
        return 1 + 0.1 * x
    return 0.1 * x


@torch.no_grad()
def fill_(module: torch.nn.Module, salt: str = "") -> torch.nn.Module:
    """Fill every floating parameter and buffer of `module` by the rule, in place, and return it in eval mode."""
    for key, value in module.state_dict(keep_vars=True).items():
        if value.is_floating_point():
            value.copy_(tensor(key, tuple(value.shape), salt))
    return module.eval()


def inputs(name: str, shape: tuple[int, ...], salt: str = "") -> torch.Tensor:
    """A standard-normal float32 input of the given shape, from its name alone."""
    rng = np.random.RandomState(zlib.crc32(("input:" + salt + name).encode()))
    return torch.from_numpy(rng.standard_normal(tuple(shape)).astype(np.float32))
