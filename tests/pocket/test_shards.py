"""A batch in parts has the gradient of the whole, and batches made ahead are those that were asked for."""

import pytest

torch = pytest.importorskip("torch")

from app.pocket.shards import Ahead, Shards  # noqa: E402


def test_parts_have_the_gradient_of_the_whole():
    torch.manual_seed(0)
    layer, batch = torch.nn.Linear(3, 1), torch.randn(8, 3)
    parameters = list(layer.parameters())
    whole = layer(batch).square().mean()
    expected = torch.autograd.grad(whole, parameters)
    with Shards(torch.device("cpu"), parameters, lambda part: layer(part).square().mean()) as shards:
        assert shards.count == 2
        loss = shards.backward(batch)
        assert loss == pytest.approx(whole.item())
        for parameter, gradient in zip(parameters, expected, strict=True):
            assert torch.allclose(parameter.grad, gradient, atol=1e-6)
        with torch.no_grad():
            layer.weight.zero_()  # every part sees what a step changed
        assert shards.backward(batch) == pytest.approx(layer.bias.square().item())


def test_an_unused_parameter_has_no_gradient():
    used, unused = torch.nn.Linear(3, 1), torch.nn.Linear(3, 1)
    with Shards(
        torch.device("cpu"), [*used.parameters(), *unused.parameters()], lambda part: used(part).mean()
    ) as shards:
        shards.backward(torch.randn(8, 3))
    assert used.weight.grad is not None and unused.weight.grad is None


def test_an_error_in_a_part_is_raised():
    layer = torch.nn.Linear(3, 1)

    def loss_of(part):
        if (part > 5).any():
            raise ValueError("a bad part")
        return layer(part).mean()

    for bad in (0, 7):
        batch = torch.zeros(8, 3)
        batch[bad] = 9
        with (
            Shards(torch.device("cpu"), list(layer.parameters()), loss_of) as shards,
            pytest.raises((RuntimeError, ValueError), match="a bad part"),
        ):
            shards.backward(batch)


def test_batches_ahead_are_those_asked_for_also_after_a_jump():
    made = []

    def make(number: int) -> int:
        made.append(number)
        return number * number

    with Ahead(make) as batches:
        assert [batches(number) for number in (0, 1, 2, 7, 8, 3)] == [0, 1, 4, 49, 64, 9]
    assert made.count(1) == made.count(8) == 1
