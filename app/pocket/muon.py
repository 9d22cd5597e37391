"""Muon for the matrices of a network, AdamW for everything else, as one optimizer of a `Stage`.

Muon makes all directions of a step equally long. What few rows of a batch ask for, and softly, is then learned as
quickly as what all of them shout: in as many minutes pocket's UNet came further with it in what geometry changes.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

MOMENTUM, DECAY = 0.95, 0.01


class Muon:
    """Convolutions are matrices too, an output channel a row; `torch.optim.Muon` works on copies of that form."""

    def __init__(self, parameters: Iterable[nn.Parameter], rate: float, plain: Iterable[nn.Parameter] = ()):
        """`plain`: matrices that AdamW moves all the same, at the same rate, as it moves vectors."""
        parameters, plain = list(parameters), {id(parameter) for parameter in plain}
        self._matrices = [p for p in parameters if p.ndim > 1 and id(p) not in plain]
        chosen = {id(parameter) for parameter in self._matrices}
        self._flat = [nn.Parameter(p.detach().reshape(len(p), -1).clone()) for p in self._matrices]
        self._muon = torch.optim.Muon(
            self._flat, lr=rate, weight_decay=DECAY, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw"
        )
        others = [p for p in parameters if id(p) not in chosen]
        kinds = {"lr": rate, "weight_decay": DECAY, "betas": (0.9, 0.99), "fused": True}
        self._adamw = torch.optim.AdamW(others, **kinds) if others else None
        self._all = parameters

    @property
    def param_groups(self) -> list[dict]:
        """Of both; whoever sets their `lr` sets the rate."""
        return [*self._muon.param_groups, *(self._adamw.param_groups if self._adamw else ())]

    @torch.no_grad()
    def step(self) -> None:
        """Move everything that has a gradient."""
        for flat, matrix in zip(self._flat, self._matrices, strict=True):
            flat.copy_(matrix.reshape(flat.shape))
            flat.grad = None if matrix.grad is None else matrix.grad.reshape(flat.shape)
        self._muon.step()
        for flat, matrix in zip(self._flat, self._matrices, strict=True):
            matrix.copy_(flat.view(matrix.shape))
        if self._adamw:
            self._adamw.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for parameter in (*self._all, *self._flat):
            parameter.grad = None

    def state_dict(self) -> dict:
        """Of both."""
        return {"muon": self._muon.state_dict(), "adamw": self._adamw.state_dict() if self._adamw else None}

    def load_state_dict(self, state: dict) -> None:
        """What `state_dict` said."""
        self._muon.load_state_dict(state["muon"])
        if self._adamw:
            self._adamw.load_state_dict(state["adamw"])
