"""Checkpoints are opened whole, from folders, single files and parts, without a network and without foreign code."""

import json
import shutil
import socket

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from app.errors import InvalidRequest
from app.models.device import TorchDevice
from app.models.library import ModelRow
from app.models.pipelines import load
from app.models.single_files import LAYOUTS, config_folder, tokenizers
from app.models.spec import Licence, ModelSpec
from tests.models import tiny_checkpoints as tiny

FAMILIES = ("sd15", "sdxl")
SINGLE = {"sd15": "single15/single-sd15.safetensors", "sdxl": "singlexl/single-sdxl.safetensors"}


def spec(family, *, kind="checkpoint", **options):
    parts = options.pop("parts", ())
    free = Licence("CC0-1.0", "https://creativecommons.org/publicdomain/zero/1.0/", commercial=True)
    return ModelSpec("tiny", "Tiny", kind, family, free, 0, parts=parts, options=options)


def opened(family, path, *, parts=(), precision="float32", **options):
    return load(spec(family, **options), path, TorchDevice("cpu", precision), parts=parts)


def draw(checkpoint, task="text-to-image", **more):
    from app.models.runtime import BorrowedPipeline, build_prompt_encoder

    prompts = build_prompt_encoder(checkpoint, ({}, {}))
    pipeline = BorrowedPipeline(checkpoint.view(task, "DDIM"), prompts, task, device=TorchDevice("cpu"))
    arguments = {"prompt": "a red car", "width": 64, "height": 64, "num_inference_steps": 2, **more}
    return np.asarray(pipeline(**arguments, generator=torch.Generator().manual_seed(0)).images[0])


def weights(checkpoint):
    return {
        f"{name}.{key}": value
        for name, part in checkpoint.components.items()
        if isinstance(part, torch.nn.Module)
        for key, value in part.state_dict().items()
    }


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*arguments, **more):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_file_is_the_folder_to_the_last_bit_and_asks_no_network(sources, family, no_network):
    folder = opened(family, sources / f"tiny-{family}")
    single = opened(family, sources / SINGLE[family])
    mine, theirs = weights(single), weights(folder)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert np.array_equal(draw(single), draw(folder))
    assert single.bytes == folder.bytes > 4_000_000


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shipped_configurations_have_the_published_shapes(family):
    """The numbers of parameters of the published checkpoints, counted without making the weights."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    def millions(build):
        with torch.device("meta"):
            return round(sum(parameter.numel() for parameter in build().parameters()) / 1e6, 1)

    folder = LAYOUTS / family
    unet = diffusers.UNet2DConditionModel.load_config(folder / "unet")
    vae = diffusers.AutoencoderKL.load_config(folder / "vae")
    counted = {
        "unet": millions(lambda: diffusers.UNet2DConditionModel.from_config(unet)),
        "vae": millions(lambda: diffusers.AutoencoderKL.from_config(vae)),
        "text_encoder": millions(lambda: CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder"))),
    }
    expected = {"unet": 859.5 if family == "sd15" else 2567.5, "vae": 83.7, "text_encoder": 123.1}
    if family == "sdxl":
        expected["text_encoder_2"] = 694.7
        counted["text_encoder_2"] = millions(
            lambda: CLIPTextModelWithProjection(CLIPTextConfig.from_pretrained(folder / "text_encoder_2"))
        )
    assert counted == expected
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == {"sd15": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}[family]
    assert {len(part) for part in tokenizers(folder).values()} == {49408}


def test_only_a_config_folder_beside_the_file_takes_the_place_of_the_shipped_one(tmp_path):
    assert config_folder(tmp_path / "model.safetensors", "sdxl") == LAYOUTS / "sdxl"
    (tmp_path / "config").mkdir()
    assert config_folder(tmp_path / "model.safetensors", "sdxl") == LAYOUTS / "sdxl"
    (tmp_path / "config" / "model_index.json").write_text("{}")
    assert config_folder(tmp_path / "model.safetensors", "sdxl") == tmp_path / "config"


def picture_and_mask():
    from PIL import Image

    return {"image": Image.new("RGB", (64, 64), (200, 30, 30)), "mask_image": Image.new("L", (64, 64), 255)}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_inpainting_checkpoint_of_nine_channels_serves_inpainting_alone(family, tmp_path):
    build = {"sd15": tiny.make_sd15, "sdxl": tiny.make_sdxl}[family]
    single = {"sd15": tiny.build_sd15, "sdxl": tiny.build_sdxl}[family]
    folder = opened(family, build(tmp_path / "folder", 1, in_channels=9))
    tiny._single_file(lambda place, seed: single(place, seed, in_channels=9), tmp_path / "one" / "m.safetensors", 1)
    config = json.loads((tmp_path / "one" / "config" / "unet" / "config.json").read_text())
    (tmp_path / "one" / "config" / "unet" / "config.json").write_text(json.dumps(config | {"in_channels": 4}))
    file = opened(family, tmp_path / "one" / "m.safetensors")
    mine, theirs = weights(file), weights(folder)
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    one, other = (draw(checkpoint, "inpaint", **picture_and_mask()).astype(int) for checkpoint in (folder, file))
    # The same weights lie elsewhere in memory, and a CPU kernel's last bit may depend on where.
    assert np.abs(one - other).max() <= 1
    with pytest.raises(InvalidRequest, match="9 channels"):
        folder.view("text-to-image", None)


def row(path, family="sdxl", **more):
    return ModelRow(spec(family, **more), True, path, 0)


def test_a_vae_part_takes_the_place_of_the_checkpoints_own(sources, tmp_path):
    plain = opened("sdxl", sources / "tiny-sdxl")
    other = tiny.build_sdxl(tmp_path / "scratch", 99).vae
    other.save_pretrained(tmp_path / "vae")
    part = row(tmp_path / "vae", kind="vae")
    replaced = opened("sdxl", sources / "tiny-sdxl", parts=[part])
    assert torch.equal(
        replaced.components["vae"].decoder.conv_in.weight, other.decoder.conv_in.weight
    )
    assert torch.equal(
        replaced.components["unet"].conv_in.weight, plain.components["unet"].conv_in.weight
    )
    without = tmp_path / "without"
    shutil.copytree(sources / "tiny-sdxl", without, ignore=shutil.ignore_patterns("diffusion_pytorch_model*"))
    shutil.copytree(sources / "tiny-sdxl" / "unet", without / "unet", dirs_exist_ok=True)
    shutil.rmtree(without / "vae")
    assert np.array_equal(draw(opened("sdxl", without, parts=[part])), draw(replaced))
    with pytest.raises(InvalidRequest, match="not a whole sdxl checkpoint"):
        opened("sdxl", without)


def test_a_single_vae_file_in_the_original_layout_is_a_part(sources, tmp_path):
    state = load_file(sources / SINGLE["sdxl"])
    prefix = "first_stage_model."
    alone = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    shutil.copytree(sources / "singlexl" / "config", tmp_path / "config")
    save_file({key: value * 0.5 for key, value in alone.items()}, tmp_path / "vae.safetensors")
    part = row(tmp_path / "vae.safetensors", kind="vae")
    replaced = opened("sdxl", sources / "tiny-sdxl", parts=[part]).components["vae"]
    plain = opened("sdxl", sources / "tiny-sdxl").components["vae"]
    assert torch.equal(replaced.decoder.conv_in.weight, plain.decoder.conv_in.weight * 0.5)


def test_a_unet_that_sees_a_picture_stands_in_its_base(sources, tmp_path):
    state = load_file(sources / "tiny-sdxl" / "unet" / "diffusion_pytorch_model.safetensors")
    first = state["conv_in.weight"]
    save_file(state | {"conv_in.weight": torch.cat([first, first * 0.5], 1)}, tmp_path / "unet.safetensors")
    options = {"layout": "component", "component": "unet"}
    for base in (sources / "tiny-sdxl", sources / SINGLE["sdxl"]):
        editor = opened("sdxl", tmp_path / "unet.safetensors", parts=[row(base)], **options)
        assert torch.equal(editor.components["unet"].conv_in.weight, torch.cat([first, first * 0.5], 1))
        assert isinstance(editor.view("instruct-pix2pix", "DDIM"), diffusers.StableDiffusionXLInstructPix2PixPipeline)
        with pytest.raises(InvalidRequest):
            editor.view("text-to-image", "DDIM")


@pytest.mark.parametrize("names", ["diffusers", "original"])
def test_a_distilled_unet_stands_in_its_base(sources, tmp_path, names):
    if names == "diffusers":
        state = load_file(sources / "tiny-sdxl" / "unet" / "diffusion_pytorch_model.safetensors")
    else:
        whole = load_file(sources / SINGLE["sdxl"])
        state = {key: value for key, value in whole.items() if key.startswith("model.diffusion_model.")}
    save_file({key: value * 0.9 for key, value in state.items()}, tmp_path / "unet.safetensors")
    options = {"layout": "component", "component": "unet", "timestep_spacing": "trailing"}
    for base in (sources / "tiny-sdxl", sources / SINGLE["sdxl"]):
        distilled = opened("sdxl", tmp_path / "unet.safetensors", parts=[row(base)], **options)
        plain = opened("sdxl", base)
        assert torch.equal(
            distilled.components["unet"].conv_in.weight, plain.components["unet"].conv_in.weight * 0.9
        )
        assert torch.equal(
            distilled.components["vae"].decoder.conv_in.weight, plain.components["vae"].decoder.conv_in.weight
        )
        assert distilled.view("text-to-image", "Euler").scheduler.config.timestep_spacing == "trailing"
        assert plain.view("text-to-image", "Euler").scheduler.config.timestep_spacing == "leading"


def test_marker_keys_of_v_prediction_and_zero_snr_are_heeded(sources, tmp_path):
    shutil.copytree(sources / "singlexl", tmp_path / "marked")
    file = tmp_path / "marked" / "single-sdxl.safetensors"
    save_file(load_file(file) | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, file)
    config = opened("sdxl", file).view("text-to-image", "Euler").scheduler.config
    assert config.prediction_type == "v_prediction"
    assert config.rescale_betas_zero_snr
    assert config.timestep_spacing == "trailing"
    said = opened("sdxl", sources / SINGLE["sdxl"], prediction_type="v_prediction")
    assert said.view("text-to-image", "DDIM").scheduler.config.prediction_type == "v_prediction"


def test_half_precision_files_are_found_by_their_variant(sources, tmp_path):
    folder = tmp_path / "half"
    pipeline = tiny.build_sd15(folder, 3).to(torch.float16)
    pipeline.save_pretrained(folder, variant="fp16")
    checkpoint = opened("sd15", folder, variant="fp16")
    assert {value.dtype for value in weights(checkpoint).values() if value.is_floating_point()} == {torch.float32}
    half = opened("sd15", folder, variant="fp16", precision="bfloat16")
    assert half.components["unet"].dtype is torch.bfloat16
    assert draw(half).std() > 5


def test_code_of_a_checkpoint_is_never_run(sources, tmp_path):
    shutil.copytree(sources / "tiny-sd15", tmp_path / "own-code")
    (tmp_path / "own-code" / "unet" / "my_unet.py").write_text("raise SystemExit('this code ran')\n")
    index = json.loads((tmp_path / "own-code" / "model_index.json").read_text())
    index["unet"] = ["my_unet", "MyUNet"]
    (tmp_path / "own-code" / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(InvalidRequest, match="code of its own"):
        opened("sd15", tmp_path / "own-code")


def test_pickles_are_not_opened(sources, tmp_path):
    shutil.copytree(sources / "tiny-sd15", tmp_path / "pickled")
    weights_file = tmp_path / "pickled" / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights_file), weights_file.with_suffix(".bin"))
    weights_file.unlink()
    with pytest.raises(InvalidRequest, match="not a whole sd15 checkpoint"):
        opened("sd15", tmp_path / "pickled")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_that_lacks_a_part_is_told(sources, tmp_path, family):
    name = SINGLE[family].split("/")
    shutil.copytree(sources / name[0], tmp_path / "cut")
    file = tmp_path / "cut" / name[1]
    state = load_file(file)
    kept = {key: value for key, value in state.items() if not key.startswith(("cond_stage_model", "conditioner"))}
    save_file(kept, file)
    with pytest.raises(InvalidRequest, match=f"not a whole {family} checkpoint"):
        opened(family, file)


def test_other_families_are_refused(sources):
    with pytest.raises(InvalidRequest, match="family"):
        opened("other", sources / "tiny-sd15")
