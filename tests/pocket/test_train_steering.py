"""Pocket's UNet learns on beside portraits that tokens tell: what is taken over, what moves, and where it goes on."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from app.pocket import spec, train_facts, train_pulid, train_steering  # noqa: E402
from app.pocket.check import load  # noqa: E402

COMMAND = ("--portraits", "32", "--latents", "32")


def steer(folder: Path, steps: int, out: str = "weights", *more: str) -> Path:
    """Run the command; answers the folder of weights."""
    command = ["--steps", str(steps), "--work", str(folder / "work"), "--out", str(folder / out), *COMMAND, *more]
    assert train_steering.main(command) == 0
    return folder / out


def unet_of(weights: Path) -> dict[str, torch.Tensor]:
    return load_file(weights / "unet/diffusion_pytorch_model.safetensors")


def test_a_run_changes_the_unet_alone_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    weights = steer(tmp_path, 1)
    before, after = unet_of(spec.WEIGHTS), unet_of(weights)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    for name in ("vae", "text_encoder", "text_encoder_2"):
        file = next((spec.WEIGHTS / name).glob("*.safetensors"))
        assert (weights / name / file.name).read_bytes() == file.read_bytes()
    assert (weights / "unet/config.json").read_bytes() == (spec.WEIGHTS / "unet/config.json").read_bytes()
    steer(tmp_path, 2)
    assert torch.load(tmp_path / "work/steering.pt", weights_only=True)["number"] == 2
    assert load(weights).unet.config.cross_attention_dim == load(spec.WEIGHTS).unet.config.cross_attention_dim


def test_facts_begin_with_the_tokens_that_the_unet_learned_to_follow(tmp_path: Path) -> None:
    steer(tmp_path, 1)
    kept = torch.load(tmp_path / "work/steering.pt", weights_only=True)["modules"]
    for version, same in (("v1.1", True), ("v1", False)):
        tokens = train_facts.FactTokens(train_pulid.TOKENS[version])
        attachment = train_pulid.Attachment(load(spec.WEIGHTS).unet)
        train_facts.begin_with(tmp_path / "work/steering.pt", tokens, attachment)
        assert all(torch.equal(kept[2][name], tensor) for name, tensor in attachment.state_dict().items())
        taken = kept[1]["linear.weight"].shape == tokens.linear.weight.shape
        assert taken is same and (not same or torch.equal(kept[1]["linear.weight"], tokens.linear.weight))


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
