"""A copy of pocket's UNet learns to follow what tokens tell of a face: what moves, where it goes on, and its LoRA."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from app.pocket import spec, train_facts, train_pulid, train_steering, unet_lora  # noqa: E402
from app.pocket.check import load  # noqa: E402


def steer(folder: Path, steps: int, *more: str) -> Path:
    """Run the command; answers the folder of the LoRA."""
    command = ["--steps", str(steps), "--work", str(folder / "work"), "--out", str(folder / "lora"), *more]
    assert train_steering.main([*command, "--portraits", "32"]) == 0
    return folder / "lora"


@pytest.fixture(scope="module")
def steered(tmp_path_factory) -> Path:
    """A folder after one step: `work/steering.pt` and `lora`."""
    folder = tmp_path_factory.mktemp("steered")
    steer(folder, 1)
    return folder


def test_a_run_leaves_pocket_alone_and_goes_on_where_it_stopped(steered: Path) -> None:
    file = spec.WEIGHTS / "unet/diffusion_pytorch_model.safetensors"
    before, first = file.read_bytes(), (steered / "lora" / unet_lora.FILE_NAME).read_bytes()
    steer(steered, 2)
    assert torch.load(steered / "work/steering.pt", weights_only=True)["number"] == 2
    assert (steered / "lora" / unet_lora.FILE_NAME).read_bytes() != first and file.read_bytes() == before


def test_the_lora_is_the_difference_and_diffusers_reads_it(steered: Path) -> None:
    state = torch.load(steered / "work/steering.pt", weights_only=True)
    pipeline = load(spec.WEIGHTS)
    learned = pipeline.unet.float()
    train_steering.Learning(pipeline)
    with torch.no_grad():
        for parameter, average in zip(
            [p for p in learned.parameters() if p.requires_grad], state["averages"], strict=False
        ):
            parameter.copy_(average)
    learned.set_default_attn_processor()
    added, worn = load(spec.WEIGHTS), load(spec.WEIGHTS)
    whole, kept = unet_lora.difference(added.unet.float(), learned, 2304)
    assert kept == pytest.approx(1, abs=1e-4)
    unet_lora.save(whole, steered / "whole")
    unet_lora.put_on(added.unet, steered / "whole")
    for name, layer in added.unet.named_modules():
        if isinstance(layer, unet_lora.LAYERS):
            assert torch.allclose(layer.weight, learned.get_submodule(name).weight, atol=3e-4), name  # sixteen bits
    worn.unet.float()
    worn.load_lora_weights(steered / "whole", weight_name=unet_lora.FILE_NAME)
    told = {
        "timestep": 500,
        "encoder_hidden_states": torch.randn(1, 20, 256),
        "added_cond_kwargs": {"text_embeds": torch.randn(1, 160), "time_ids": torch.full((1, 6), 128.0)},
    }
    with torch.no_grad():
        noise = torch.randn(1, 4, 16, 16)
        assert torch.allclose(
            worn.unet.eval()(noise, **told).sample, added.unet.eval()(noise, **told).sample, atol=1e-4
        )


def test_fewer_numbers_keep_less_of_it(steered: Path) -> None:
    before = load(spec.WEIGHTS).unet.float()
    after = load(spec.WEIGHTS).unet.float()
    with torch.no_grad():
        for parameter in after.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    shares = [unet_lora.difference(before, after, rank)[1] for rank in (4, 16)]
    assert 0 < shares[0] < shares[1] < 1


def test_what_is_pressed_is_what_a_lora_says(steered: Path) -> None:
    before, after = load(spec.WEIGHTS).unet.float(), load(spec.WEIGHTS).unet.float()
    torch.manual_seed(1)
    with torch.no_grad():
        for layer in after.modules():
            if isinstance(layer, unet_lora.LAYERS):
                layer.weight.add_(0.01 * torch.randn_like(layer.weight))
    wanted, some = unet_lora.difference(before, after, 8)
    assert some < 0.9
    unet_lora.press(before, after, 8)
    assert unet_lora.difference(before, after, 8)[1] == pytest.approx(1, abs=1e-4)
    unet_lora.save(wanted, steered / "pressed")
    unet_lora.put_on(before, steered / "pressed")
    for (name, one), other in zip(before.named_parameters(), after.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-4), name


def test_only_what_a_lora_holds_learns(steered: Path) -> None:
    kept = torch.load(steered / "work/steering.pt", weights_only=True)["modules"][0]
    layers = {n for n, layer in load(spec.WEIGHTS).unet.named_modules() if isinstance(layer, unet_lora.LAYERS)}
    moved = {n for n, t in load(spec.WEIGHTS).unet.float().state_dict().items() if not torch.equal(kept[n], t)}
    assert moved and moved <= {f"{name}.weight" for name in layers}


def test_facts_begin_with_the_tokens_and_a_run_with_the_unet_too(steered: Path) -> None:
    kept = torch.load(steered / "work/steering.pt", weights_only=True)["modules"]
    taught = kept[1]["linear.weight"].unflatten(0, (train_pulid.TOKENS["v1.1"], -1))
    for version, order in (("v1.1", range(8)), ("v1", (*range(8), 0, 1))):
        tokens, unet = train_facts.FactTokens(train_pulid.TOKENS[version]), load(spec.WEIGHTS).unet.float()
        attachment = train_pulid.Attachment(unet)
        train_facts.begin_with(steered / "work/steering.pt", tokens, attachment, unet)
        assert all(torch.equal(kept[0][name], tensor) for name, tensor in unet.state_dict().items())
        assert all(torch.equal(kept[2][name], tensor) for name, tensor in attachment.state_dict().items())
        assert torch.equal(tokens.nobody, kept[1]["nobody"][list(order)])
        assert torch.equal(tokens.linear.weight.unflatten(0, (len(order), -1)), taught[list(order)])


def test_what_is_told_otherwise_is_missed_by_a_unet_that_does_not_listen() -> None:
    """The share of a UNet that answers both geometries alike is nothing drawn; of one that answers the wish, all."""
    from app.pocket.checkpoints import generator_of, rng_of
    from tests.pocket.test_train_facts import some_people

    some = some_people(32)
    others = some.latents + 0.5
    frozen, tokens = train_pulid.Frozen(load(spec.WEIGHTS)), train_facts.FactTokens(8)
    told = train_facts.Told(some, others, tokens, frozen, rng_of("t"), generator_of("t"), pairs=6, earliest=200)
    assert len(told.rows) == len(told.tokens) == len(told.noisy) + 6 and int(told.time[:6].min()) >= 200
    deaf = torch.zeros(len(told.rows), 4, 16, 16)
    _, share = told.losses(deaf)
    assert 0.85 < share < 1
    heard = deaf.clone()
    sigma = frozen.levels(told.time)[1][:6]
    heard[:6] = sigma * 0.5
    assert told.losses(heard)[1] < 1e-6


def test_a_mistake_counts_by_where_it_is_made() -> None:
    from app.pocket.checkpoints import generator_of, rng_of
    from tests.pocket.test_train_facts import some_people

    some, where = some_people(32), torch.ones(16, 16)
    where[:8], where[8:] = 1.5, 0.5
    frozen, tokens = train_pulid.Frozen(load(spec.WEIGHTS)), train_facts.FactTokens(8)
    losses = []
    for wrong in (slice(0, 8), slice(8, 16)):
        told = train_facts.Told(some, some.latents, tokens, frozen, rng_of("w"), generator_of("w"), 0, 12, where=where)
        answer = told._target.clone()
        answer[:, :, wrong] += 1
        losses.append(told.losses(answer)[0].item())
    assert losses == [pytest.approx(0.75), pytest.approx(0.25)]


def test_the_shipped_lora_fits_pocket_and_is_small() -> None:
    file = train_steering.FOLDER / unet_lora.FILE_NAME
    state, unet = load_file(file), load(spec.WEIGHTS).unet
    layers = {name for name, layer in unet.named_modules() if isinstance(layer, unet_lora.LAYERS)}
    assert {name.removeprefix("unet.").rsplit(".", 2)[0] for name in state} == layers
    assert {tensor.shape[0] for name, tensor in state.items() if name.endswith(unet_lora.DOWN)} == {train_steering.RANK}
    assert file.stat().st_size <= 15_000_000


def test_a_training_goes_on_from_what_ships() -> None:
    folder = train_steering.FOLDER.parent
    tokens, unet = train_facts.FactTokens(8), load(spec.WEIGHTS).unet.float()
    attachment, plain = train_pulid.Attachment(unet), load(spec.WEIGHTS).unet.float()
    begun = [parameter.clone() for parameter in (*tokens.parameters(), *attachment.parameters())]
    train_facts.begin_with(folder, tokens, attachment, unet)
    assert not any(map(torch.equal, begun, (*tokens.parameters(), *attachment.parameters())))
    changed, kept = unet_lora.difference(plain, unet, train_steering.RANK)
    assert kept == pytest.approx(1, abs=1e-3) and len(changed) > 100
