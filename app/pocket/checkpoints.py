"""A stage of training on disk: what it needs to go on, written whole or not at all.

Every batch is a function of the seed and its number, so networks, optimizer, averages and the batch's number are the
whole state: a run that was cut off and resumed is equal, bit for bit, to one that was not.
"""

from __future__ import annotations

import math
import os
import random
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

SAVE_EVERY_SECONDS = 180


class Averages:
    """Exponential moving averages of parameters; the horizon grows with the run, so early steps are forgotten."""

    def __init__(self, parameters: Iterable[nn.Parameter], horizon: float):
        self.parameters = list(parameters)
        self.horizon = horizon
        self.values = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(1 - 1 / self.horizon, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, [p.detach() for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def copy_to_parameters(self) -> None:
        for parameter, value in zip(self.parameters, self.values, strict=True):
            parameter.copy_(value)


def learning_rate(step: int, steps: int, peak: float, warm_up: int = 300, cool_down: float = 0.3) -> float:
    """A short warm-up, a plateau, and a cosine to a hundredth over the last `cool_down` of the steps."""
    warm = min(1.0, (step + 1) / min(warm_up, max(1, steps // 10)))
    left = (steps - step) / max(1.0, cool_down * steps)
    return peak * warm * (1.0 if left >= 1 else 0.01 + 0.99 * (0.5 - 0.5 * math.cos(math.pi * left)))


def rng_of(*parts: object) -> random.Random:
    """A random source that is a function of its name."""
    return random.Random("/".join(map(str, parts)))


def generator_of(*parts: object) -> torch.Generator:
    return torch.Generator().manual_seed(rng_of(*parts).getrandbits(63))


def adamw(parameters: list[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """The usual optimizer of a stage."""
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01, betas=(0.9, 0.99), fused=True)


class Stage:
    """One network's training: steps of `step(number)`, resumed from and saved to `<folder>/<name>.pt`.

    The state at the start of the cool-down is kept in `<name>-plateau.pt`: a longer run goes on from there.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        modules: list[nn.Module],
        rate: float,
        steps: int,
        horizon: float = 1000,
        cool_down: float = 0.3,
        optimizer: Callable[[list[nn.Parameter], float], Any] = adamw,
    ):
        self.name, self.path, self.steps, self.rate = name, folder / f"{name}.pt", steps, rate
        self.modules, self.cool_down = modules, cool_down
        self.parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        self.optimizer = optimizer(self.parameters, rate)
        self.averages = Averages(self.parameters, horizon)
        self.number = 0
        self.plateau = self.path.with_name(f"{name}-plateau.pt")
        self.cool_down_start = int(steps * (1 - cool_down))
        if self.path.exists():
            self.load()

    def load(self) -> None:
        state = torch.load(self.path, weights_only=True, map_location="cpu")
        if state["steps"] != self.steps and state["number"] > state["cool_down_start"] and self.plateau.exists():
            state = torch.load(self.plateau, weights_only=True, map_location="cpu")
        for module, weights in zip(self.modules, state["modules"], strict=True):
            module.load_state_dict(weights)
        self.optimizer.load_state_dict(state["optimizer"])
        for value, saved in zip(self.averages.values, state["averages"], strict=True):
            value.copy_(saved)
        self.number = state["number"]

    def save(self) -> None:
        state = {
            "modules": [module.state_dict() for module in self.modules],
            "optimizer": self.optimizer.state_dict(),
            "averages": self.averages.values,
            "number": self.number,
            "steps": self.steps,
            "cool_down_start": self.cool_down_start,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, self.path)

    def run(
        self,
        step: Callable[[int], float],
        until: int | None = None,
        seconds: float | None = None,
        report: Callable[[str], None] = print,
    ) -> bool:
        """Train to the end (or to step `until`, or for `seconds`); True when the stage is complete."""
        started = saved = reported = time.monotonic()
        first, mean = self.number, None
        end = min(self.steps, until or self.steps)
        while self.number < end:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.number, self.steps, self.rate, cool_down=self.cool_down)
            if self.number == self.cool_down_start:
                self.save()
                shutil.copyfile(self.path, self.plateau)
            value = step(self.number)
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.number += 1
            self.averages.update(self.number)
            now = time.monotonic()
            mean = value if mean is None else mean + 0.02 * (value - mean)
            if now - reported > 20 or self.number == end:
                pace = (self.number - first) / (now - started)
                left = (self.steps - self.number) / pace / 60
                report(
                    f"{self.name}: step {self.number} of {self.steps}, loss {mean:.4f}, "
                    f"{pace:.2f} steps/s, {left:.0f} min left"
                )
                reported = now
            if now - saved > SAVE_EVERY_SECONDS:
                self.save()
                saved = now
            if seconds is not None and now - started > seconds:
                break
        self.save()
        return self.number >= self.steps
