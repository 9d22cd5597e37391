"""EVA02-CLIP's tower against the reference, from a file with the published keys through the product's own loader."""

import math

import pytest
import torch
from safetensors.torch import save_file
from timm.models.eva import checkpoint_filter_fn
from torch.nn.functional import layer_norm, linear, normalize, silu

from app.errors import InvalidRequest
from app.models import eva_clip
from app.models.device import TorchDevice
from app.models.spec import Licence, ModelSpec

TOLERANCE = 1e-4
LICENCE = Licence("MIT", "https://example.org", commercial=True)


def open_tower(case, folder, keys=None):
    """The tower of a case by the loader, from a folder with one file as a row has it."""
    config = case.config["config"]
    folder.mkdir()
    weights = case.tensors(case.config["keys"] if keys is None else keys)
    # The published file brings these buffers along; they are worked out anew.
    weights["visual.rope.freqs_cos"] = weights["visual.rope.freqs_sin"] = torch.zeros(16, 32)
    save_file({key: value.clone() for key, value in weights.items()}, folder / "tower.safetensors")
    options = {"head_dim": str(config["embed_dim"] // config["num_heads"])}
    spec = ModelSpec("tiny", "Tiny", "other", "other", LICENCE, 0, options=options)
    return eva_clip.load(spec, folder, TorchDevice("cpu"))


def plain_tower(weights, config, pixels):
    """The tower in plain words, straight from its description: rotary positions on the patches alone, sub-norms."""
    width, heads = config["embed_dim"], config["num_heads"]
    head, grid = width // heads, config["img_size"] // config["patch_size"]

    def norm(x, name):
        return layer_norm(x, (x.shape[-1],), weights[name + ".weight"], weights[name + ".bias"], 1e-6)

    frequencies = 10000 ** -(torch.arange(0, head // 2, 2) / (head // 2))
    turns = (torch.arange(grid) / grid * 16)[:, None] * frequencies
    turns = turns.repeat_interleave(2, dim=-1)
    turns = torch.cat(
        [turns[:, None].expand(grid, grid, head // 2), turns[None].expand(grid, grid, head // 2)], dim=-1
    ).reshape(grid * grid, head)

    def turned(x):
        pairs = x.unflatten(-1, (-1, 2))
        quarter = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)
        return x * turns.cos() + quarter * turns.sin()

    x = torch.nn.functional.conv2d(
        pixels, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=config["patch_size"]
    ).flatten(2).transpose(1, 2)  # fmt: skip
    x = torch.cat([weights["cls_token"].expand(len(x), -1, -1), x], dim=1) + weights["pos_embed"]
    hidden = []
    for number in range(config["depth"]):
        block = f"blocks.{number}."
        if number in (4, 8, 12, 16, 20):
            hidden.append(x)
        y = norm(x, block + "norm1")
        q = linear(y, weights[block + "attn.q_proj.weight"], weights[block + "attn.q_bias"])
        k = linear(y, weights[block + "attn.k_proj.weight"])
        v = linear(y, weights[block + "attn.v_proj.weight"], weights[block + "attn.v_bias"])
        q, k, v = (part.unflatten(-1, (heads, head)).transpose(1, 2) for part in (q, k, v))
        q, k = (torch.cat([part[:, :, :1], turned(part[:, :, 1:])], dim=2) for part in (q, k))
        y = ((q @ k.transpose(-1, -2)) / math.sqrt(head)).softmax(-1) @ v
        y = norm(y.transpose(1, 2).flatten(2), block + "attn.inner_attn_ln")
        x = x + linear(y, weights[block + "attn.proj.weight"], weights[block + "attn.proj.bias"])
        y = norm(x, block + "norm2")
        gate, value = (
            linear(y, weights[f"{block}mlp.{name}.weight"], weights[f"{block}mlp.{name}.bias"]) for name in ("w1", "w2")
        )
        y = norm(silu(gate) * value, block + "mlp.ffn_ln")
        x = x + linear(y, weights[block + "mlp.w3.weight"], weights[block + "mlp.w3.bias"])
    return linear(norm(x, "norm")[:, 0], weights["head.weight"], weights["head.bias"]), hidden


def distance(features, pooled, hidden):
    assert len(features.hidden) == len(hidden) == 5
    pairs = [(features.pooled, pooled), *zip(features.hidden, hidden, strict=True)]
    return max((ours - theirs).abs().max().item() for ours, theirs in pairs)


def test_the_tower_agrees_with_the_reference(parity_case, tmp_path):
    case = parity_case("eva02_clip")
    features = open_tower(case, tmp_path / "tower").encode(case.inputs("eva_pixels", (2, 3, 56, 56)))
    hidden = [case.expected[f"hidden{number}"] for number in range(5)]
    assert distance(features, case.expected["embedding"], hidden) <= TOLERANCE


@pytest.mark.parametrize("salt", [None, "second"])
def test_another_draw_agrees_with_the_plain_tower(parity_case, tmp_path, salt):
    case = parity_case("eva02_clip")
    pixels = case.inputs("eva_pixels", (2, 3, 56, 56))
    drawn = case if salt is None else case.with_salt(salt)
    weights = {key.removeprefix("visual."): value for key, value in drawn.tensors(case.config["keys"]).items()}
    pooled, hidden = plain_tower(weights, case.config["config"], pixels)
    if salt is None:
        assert (pooled - case.expected["embedding"]).abs().max() <= TOLERANCE
    features = open_tower(drawn, tmp_path / "tower").encode(pixels)
    assert distance(features, pooled, hidden) <= TOLERANCE
    assert (features.pooled - case.expected["embedding"]).abs().max() > 0.01 or salt is None


def test_the_published_keys_fill_a_full_size_tower(parity_case):
    keys = parity_case("eva02_clip").checkpoint_keys
    assert sum(math.prod(shape) for shape in keys.values()) == 304_432_832
    with torch.device("meta"):
        weights = {key: torch.empty(shape) for key, shape in keys.items()}
        tower = eva_clip.tower_of(weights, 64)
        converted = checkpoint_filter_fn(dict(weights), tower)
        assert len(converted) == len(keys)
        tower.load_state_dict(converted)
        built = eva_clip.fill(weights, 64)
    assert built.size == 336
    assert sum(parameter.numel() for parameter in built.parameters()) == 304_432_832
    assert built.depths == [3, 7, 11, 15, 19]
    own = {key: tuple(value.shape) for key, value in tower.state_dict().items()}
    assert own == {key: tuple(value.shape) for key, value in converted.items()}


def test_a_file_of_the_published_keys_passes_the_loader(parity_case, tmp_path):
    # The published widths at a depth of six blocks, in 16 bit as a converted file may be.
    keys = {key: shape for key, shape in parity_case("eva02_clip").checkpoint_keys.items() if not late(key, 6)}
    save_file({key: torch.zeros(shape, dtype=torch.float16) for key, shape in keys.items()}, tmp_path / "t.safetensors")
    tower = eva_clip.open_file(tmp_path / "t.safetensors")
    assert tower.tower.head.weight.dtype == torch.float32
    features = tower.encode(tower.preprocess(torch.rand(1, 3, 512, 512)))
    assert features.pooled.shape == (1, 768)
    assert [tuple(part.shape) for part in features.hidden] == [(1, 577, 1024)] * 5


def late(key, depth):
    parts = key.split(".")
    return parts[1] == "blocks" and int(parts[2]) >= depth


def test_a_crop_is_prepared_as_clip_asks(parity_case, tmp_path):
    tower = open_tower(parity_case("eva02_clip"), tmp_path / "tower")
    grey = tower.preprocess(torch.full((1, 3, 512, 512), 0.5))
    assert grey.shape == (1, 3, 56, 56)
    wanted = [(0.5 - mean) / std for mean, std in zip(eva_clip.MEAN, eva_clip.STD, strict=True)]
    assert torch.allclose(grey.mean((0, 2, 3)), torch.tensor(wanted), atol=1e-5)
    # One-pixel stripes become an even grey when a picture is scaled down with antialiasing, and a pattern without.
    stripes = (torch.arange(512) % 2).float().expand(1, 3, 512, 512)
    assert tower.preprocess(stripes).std((0, 2, 3)).max() < 0.1


@pytest.mark.parametrize("damage", ["missing key", "wrong shape", "no tensors", "garbage", "absent"])
def test_a_file_that_is_no_tower_is_refused(parity_case, tmp_path, damage):
    case = parity_case("eva02_clip")
    weights, file = case.tensors(case.config["keys"]), tmp_path / "tower.safetensors"
    if damage == "missing key":
        del weights["visual.blocks.3.mlp.w2.weight"]
    elif damage == "wrong shape":
        weights["visual.blocks.3.mlp.w2.weight"] = torch.zeros(3, 64)
    elif damage == "no tensors":
        weights = {"text.token_embedding.weight": torch.zeros(4, 4)}
    if damage == "garbage":
        file.write_bytes(b"\x00" * 100)
    elif damage != "absent":
        save_file(weights, file)
    with pytest.raises(InvalidRequest, match="not a whole EVA02-CLIP tower"):
        eva_clip.open_file(file, 32)


def test_the_pooled_embedding_is_left_unnormalised(parity_case):
    pooled = parity_case("eva02_clip").expected["embedding"]
    assert not torch.allclose(pooled, normalize(pooled, dim=-1), atol=0.1)
