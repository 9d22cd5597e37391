"""The optimizer of steering: every direction of a matrix moves alike, vectors as ever, and a cut is not seen."""

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from app.pocket.checkpoints import Stage, generator_of  # noqa: E402
from app.pocket.muon import Muon  # noqa: E402


def test_what_few_rows_ask_for_moves_as_far_as_what_all_do() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 16, 3)
    directions = torch.linalg.qr(torch.randn(72, 2))[0].T
    sides = torch.linalg.qr(torch.randn(16, 2))[0]
    layer.weight.grad = (sides * torch.tensor([1.0, 0.02]) @ directions).view_as(layer.weight)
    layer.bias.grad = torch.randn(16)
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    Muon(layer.parameters(), 1e-2).step()
    moved = (before[0] - layer.weight).flatten(1) - 1e-4 * before[0].flatten(1)
    loud, soft = torch.linalg.svdvals(moved)[:2]
    assert soft > 0.5 * loud > 0
    assert ((before[1] - layer.bias).abs() - 1e-2).abs().max() < 2e-4


def test_what_is_plain_is_left_to_adamw_and_frozen_parts_stay() -> None:
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    chosen = [*first.parameters(), *second.parameters()]
    optimizer = Muon(chosen, 1e-2, plain=second.parameters())
    second.weight.grad = torch.randn(6, 6)
    kept, before = first.weight.detach().clone(), second.weight.detach().clone()
    optimizer.step()
    assert torch.equal(first.weight, kept)
    assert ((before - second.weight).abs() - 1e-2).abs().max() < 2e-4
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in chosen)


@pytest.mark.parametrize("cut", (None, 7))
def test_a_run_that_was_cut_ends_in_the_same_bits(tmp_path, cut) -> None:
    def network() -> nn.Module:
        torch.manual_seed(3)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4))

    def run(folder, *ends) -> nn.Module:
        for end in ends:
            some = network()
            stage = Stage("net", folder, [some], 1e-2, 12, optimizer=Muon)

            def step(number: int, some=some) -> float:
                loss = (some(torch.randn(5, 3, 4, 4, generator=generator_of("m", number))) - 1).square().mean()
                loss.backward()
                return loss.item()

            stage.run(step, until=end, report=lambda line: None)
        return some

    whole = run(tmp_path / "whole", None)
    parts = run(tmp_path / "parts", *([cut, None] if cut else [None]))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))
    assert not torch.equal(whole[0].weight, network()[0].weight)
