"""Step1X-Edit against the reference: a folder with the published names in, tokens, velocity, pieces and places out."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.errors import InvalidRequest
from app.models import step1x, step1x_text
from app.models.device import TorchDevice
from app.models.spec import ModelSpec
from app.models.step1x_network import DOUBLE, SINGLE, SPLIT, TOP, build, ours
from tests.models import tiny_step1x
from tests.parity.cases import DATA
from tests.parity.shelf import FREE, Shelf, open_runtime

TOLERANCE = 1e-4
TASK = "step1x-edit"


def error(found, expected):
    assert found.shape == expected.shape
    return float((found - expected).abs().max())


def opened(case, folder, version):
    """The case's network, opened by a runtime as a request opens it; files go below `folder`."""
    shelf = Shelf(folder)
    published = tiny_step1x.make_folder(
        folder / version, case.config["keys"], case.config["config"], version=version, tensor=case.tensor
    )
    shelf.put("step1x", published, kind="checkpoint", task=TASK, family="other", layout="diffusers")
    return open_runtime(shelf).editor("step1x", task=TASK)


def velocity(transformer, case):
    """What the network says of the case's inputs."""
    grid = step1x_text.grid_ids(4, 4)
    reference = step1x_text.grid_ids(4, 4, axis=1)
    mask = torch.ones(2, 11)
    mask[1, 8:] = 0
    with torch.no_grad():
        return transformer(
            case.inputs("latent_tokens", (2, 32, 16)),
            encoder_hidden_states=case.inputs("vlm_hidden", (2, 11, 80)),
            prompt_embeds_mask=mask,
            timestep=torch.tensor(case.config["inputs"]["timestep"]),
            img_ids=torch.cat([grid, reference]),
            txt_ids=torch.zeros(11, 3),
            text_embeddings=case.inputs("text_embeddings", (2, 11, 80)),
            text_mask=case.inputs("text_mask", (2, 11)) > 0,
        )


@pytest.mark.parametrize("version", ["1.1", "1.2"])
def test_connector_and_velocity(parity_case, tmp_path, version):
    """Through the loader and the network that a request's editor calls."""
    case = parity_case("step1x_edit")
    with opened(case, tmp_path, version) as editor:
        assert editor._opened.version.name == version
        transformer = editor._opened.transformer
        mask = torch.ones(2, 11)
        mask[1, 8:] = 0
        with torch.no_grad():
            tokens, pooled = transformer.connector(
                case.inputs("vlm_hidden", (2, 11, 80)), torch.tensor(case.config["inputs"]["timestep"]), mask
            )
        assert error(tokens, case.expected["connector.tokens"]) < TOLERANCE
        assert error(pooled, case.expected["connector.pooled"]) < TOLERANCE
        found = velocity(transformer, case)
    name = "v" + version.replace(".", "p")
    assert error(found, case.expected[f"{name}.velocity"]) < TOLERANCE
    other = "v1p1" if version == "1.2" else "v1p2"
    assert error(found, case.expected[f"{other}.velocity"]) > 10 * TOLERANCE, "the versions differ"


def original_of(state):
    """A v1.1 diffusers state in the original single file's layout."""
    left = {key: value for key, value in ours(state).items() if key.startswith("flux.")}
    found = {key: value for key, value in state.items() if key.startswith("connector.")}

    def take(name):
        return left.pop("flux." + name)

    def kinds(stem):
        return [kind for kind in ("weight", "bias") if f"flux.{stem}.{kind}" in left]

    for name, stem in TOP.items():
        for kind in kinds(stem):
            value = take(f"{stem}.{kind}")
            found[f"{name}.{kind}"] = torch.cat(value.chunk(2)[::-1]) if "adaLN" in name else value
    for prefix, blocks, names in (
        ("transformer_blocks", "double_blocks", DOUBLE),
        ("single_transformer_blocks", "single_blocks", SINGLE),
    ):
        numbers = {key.split(".")[2] for key in left if key.startswith(f"flux.{prefix}.")}
        for number in sorted(numbers):
            for name, stem in names.items():
                for kind in kinds(f"{prefix}.{number}.{stem}"):
                    published = "scale" if name.endswith("_norm") else kind
                    found[f"{blocks}.{number}.{name}.{published}"] = take(f"{prefix}.{number}.{stem}.{kind}")
            for name, parts in SPLIT.items():
                if (name == "linear1") != (blocks == "single_blocks"):
                    continue
                for kind in kinds(f"{prefix}.{number}.{parts[-1]}"):
                    rows = [take(f"{prefix}.{number}.{part}.{kind}") for part in parts]
                    found[f"{blocks}.{number}.{name}.{kind}"] = torch.cat(rows)
    assert not left
    return found


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_the_original_single_file_is_the_same_network(parity_case, tmp_path, version):
    """Its names and its order of rows: the same velocity; v1.0's factor of the mean acts on the pooled vector alone."""
    case = parity_case("step1x_edit")
    state = case.tensors({key: shape for key, shape in case.config["keys"].items() if "text_token" not in key})
    file = original_of(state)
    if version == "1.0":
        file["connector.scale_factor"] = torch.tensor([-0.91])
    folder = tmp_path / "original"
    (folder / "config" / "transformer").mkdir(parents=True)
    (folder / "config" / "transformer" / "config.json").write_text(json.dumps(case.config["config"]))
    save_file({key: value.contiguous() for key, value in file.items()}, folder / "step1x.safetensors")
    tiny_step1x.make_autoencoder(folder / "config" / "vae")
    save_file(
        original_autoencoder(load_file(folder / "config" / "vae" / "diffusion_pytorch_model.safetensors")),
        folder / "vae.safetensors",
    )
    language = tmp_path / "language"
    language.mkdir()
    tiny_step1x.make_language_model(language, tiny_step1x.make_tokenizer(language))
    shelf = Shelf(tmp_path)
    shelf.put("qwen", language, kind="other", task="qwen2.5-vl", family="other", layout="folder")
    shelf.put(
        "step1x", folder, kind="checkpoint", task=TASK, family="other", parts=("qwen",), weights="step1x.safetensors"
    )
    with open_runtime(shelf).editor("step1x", task=TASK) as editor:
        assert editor._opened.version.name == version
        transformer = editor._opened.transformer
        if version == "1.0":
            hidden, mask = case.inputs("vlm_hidden", (1, 11, 80)), torch.ones(1, 11)
            with torch.no_grad():
                _, pooled = transformer.connector(hidden, torch.tensor([0.7]), mask)
                expected = transformer.connector.global_proj_out(hidden.mean(1) * 0.09)
            assert error(pooled, expected) < TOLERANCE
        else:
            assert error(velocity(transformer, case), case.expected["v1p1.velocity"]) < TOLERANCE


def original_autoencoder(state):
    """A diffusers autoencoder's state under the names of the original file."""
    blocks = {int(key.split(".")[2]) for key in state if key.startswith("encoder.down_blocks.")}
    last = max(blocks)
    found = {}
    for key, value in state.items():
        name = key.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2")
        name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        for new, old in (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
            name = name.replace(f"mid_block.attentions.0.{new}", f"mid.attn_1.{old}")
        parts = name.split(".")
        if parts[1] in {"down_blocks", "up_blocks"}:
            down = parts[1] == "down_blocks"
            level = parts[2] if down else str(last - int(parts[2]))
            kind = {"resnets": "block"}.get(parts[3])
            rest = [kind, *parts[4:]] if kind else ["downsample" if down else "upsample", *parts[5:]]
            parts = [parts[0], "down" if down else "up", level, *rest]
        matrix = ".mid.attn_1." in ".".join(parts) and value.ndim == 2
        found[".".join(parts)] = value[..., None, None].contiguous() if matrix else value
    return found


def test_instructions_are_cut_at_quotes(parity_case):
    """Letter for letter as the reference cuts them, with special tokens and without."""
    case = parity_case("step1x_edit")
    told = json.loads((case.folder / "text.json").read_text("utf-8"))
    prefix, length = "x" * told["prefix_len"], told["prefix_len"]
    assert len(told["rows"]) >= 7
    for row in told["rows"]:
        text = prefix + row["text"]
        assert step1x_text.cut_at_quotes(text) == row["v1"], row["text"]
        assert step1x_text.cut_and_flag(text, length) == tuple(row["v12"]), row["text"]
        with_tokens = step1x_text.cut_at_tokens(text + told["special_suffix"], length, told["special_tokens"])
        assert with_tokens == tuple(row["v12_special"]), row["text"]


def test_position_ids(parity_case):
    case = parity_case("step1x_edit")
    told = json.loads((case.folder / "text.json").read_text("utf-8"))
    expected = load_file(case.folder / "ids.safetensors")
    height, width = told["ids"]["target_and_reference_grid"]
    for version, name in ((step1x_text.V1_1, "v1p1"), (step1x_text.V1_2, "v1p2")):
        assert error(step1x_text.image_ids(version, height, width), expected[f"ids.{name}"]) < 1e-5
    size, grid = told["vision"]["source_width_height"], told["vision"]["vision_grid_height_width"]
    assert error(step1x_text.vision_affine(size, grid), expected["vision_affine"]) < 1e-5
    length = told["vision"]["length"]
    is_vision = torch.zeros(length, dtype=torch.bool)
    is_vision[2 : 2 + grid[0] * grid[1]] = True
    found = step1x_text.text_ids(torch.arange(length).float(), is_vision, size, grid)
    assert error(found, expected["vision_txt_ids"]) < 1e-5


@pytest.mark.parametrize("file", ["checkpoint_keys.json", "checkpoint_keys_original.json"])
def test_the_published_files_fit_at_full_size(parity_case, file):
    """Every key and shape of both layouts is the network's, by the loader's own renaming."""
    case = parity_case("step1x_edit")
    published = case.keys_of(file)
    assert (DATA / "step1x_edit" / file).is_file() and len(published) > 800
    state = ours({key: torch.empty(shape, device="meta") for key, shape in published.items()})
    network = build(state, {})
    assert {key: value.shape for key, value in network.state_dict().items()} == {
        key: value.shape for key, value in state.items()
    }
    assert sum(value.numel() for value in state.values()) > 12.4e9
    assert step1x.version_of(network).name == ("1.0" if "original" in file else "1.2")
    assert network.flux.config.axes_dims_rope == (16, 56, 56) and network.flux.config.num_attention_heads == 24


def test_a_folder_of_something_else_is_refused(tmp_path):
    """In a sentence, not with a stack trace."""
    spec = ModelSpec("other", "Other", "checkpoint", "other", FREE, 1)
    with pytest.raises(InvalidRequest, match="no whole Step1X-Edit"):
        step1x.load(spec, tmp_path, TorchDevice("cpu", "float32"))
