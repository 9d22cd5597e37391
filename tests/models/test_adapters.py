"""Additions act as their files say, and leave no trace: weights, modules and outputs are bit for bit what they were."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.core.fields import WeightedModel
from app.errors import InvalidRequest, WeightsMissing
from app.models import adapters
from app.models.adapters import Addition
from app.models.device import TorchDevice
from app.models.pipelines import load
from app.models.runtime import build_prompt_encoder
from tests.models import tiny_checkpoints as tiny
from tests.models.dressed import loras, textual_inversions

FAMILIES = ("sd15", "sdxl")


@pytest.fixture(params=FAMILIES)
def checkpoint(request, library):
    row = library.require(f"tiny-{request.param}")
    return load(row.spec, row.path, TorchDevice("cpu"))


def trace(checkpoint):
    """Everything that an addition could have left behind."""
    found = {}
    for name, module in checkpoint.components.items():
        if not isinstance(module, torch.nn.Module):
            found[name] = (id(module), len(module), module.get_added_vocab())
            continue
        found[name] = {key: value.clone() for key, value in module.state_dict().items()}
        found[name + " modules"] = [(path, type(part), part.training) for path, part in module.named_modules()]
        found[name + " attributes"] = sorted(vars(module).keys() - {"peft_config", "_hf_peft_config_loaded"})
        found[name + " config"] = dict(module.config.items()) if hasattr(module.config, "items") else str(module.config)
        found[name + " peft"] = bool(getattr(module, "peft_config", None) or vars(module).get("_hf_peft_config_loaded"))
    return found


def assert_untouched(before, after):
    assert before.keys() == after.keys()
    for name in before:
        if isinstance(before[name], dict) and all(isinstance(value, torch.Tensor) for value in before[name].values()):
            assert before[name].keys() == after[name].keys(), name
            assert all(torch.equal(before[name][key], after[name][key]) for key in before[name]), name
        else:
            assert before[name] == after[name], name


def outputs(checkpoint, prompt="a red car"):
    """The text embedding and one UNet step."""
    arguments = build_prompt_encoder(checkpoint, ({}, {})).arguments([prompt], None, guided=False)
    draw = torch.Generator().manual_seed(0)
    more = {}
    if checkpoint.family == "sdxl":
        more["added_cond_kwargs"] = {
            "text_embeds": arguments["pooled_prompt_embeds"],
            "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]]),
        }
    latents = torch.randn(1, 4, 8, 8, generator=draw)
    with torch.no_grad():
        sample = checkpoint.components["unet"](latents, 500, arguments["prompt_embeds"], **more).sample
    return arguments["prompt_embeds"], sample


def same(one, other):
    return all(torch.equal(first, second) for first, second in zip(one, other, strict=True))


def merge_by_hand(checkpoint, file, weight):
    """W + weight * alpha / rank * up @ down for every matrix of a kohya file."""
    state = load_file(file)
    names = {"lora_unet_": "unet", "lora_te_": "text_encoder", "lora_te1_": "text_encoder"}
    names["lora_te2_"] = "text_encoder_2"
    paths = {
        component: {path.replace(".", "_"): part for path, part in checkpoint.components[component].named_modules()}
        for component in set(names.values()) & set(checkpoint.components)
    }
    merged = 0
    for key in [key.removesuffix(".alpha") for key in state if key.endswith(".alpha")]:
        prefix = next(prefix for prefix in names if key.startswith(prefix))
        flat = key.removeprefix(prefix)
        known = paths[names[prefix]]
        layer = known.get(flat) or known[flat.removeprefix("text_model_")]
        down, up = state[key + ".lora_down.weight"], state[key + ".lora_up.weight"]
        change = (up.flatten(1) @ down.flatten(1)).reshape(layer.weight.shape)
        layer.weight += weight * state[key + ".alpha"] / len(down) * change
        merged += 1
    return merged


def test_a_kohya_lora_acts_as_its_merged_weights(checkpoint, sources, library):
    file = sources / f"lora-{checkpoint.family}-kohya.safetensors"
    with loras(checkpoint.view("text-to-image", None), [Addition("kohya", file, 0.7)]):
        put_on = outputs(checkpoint)
    row = library.require(f"tiny-{checkpoint.family}")
    merged = load(row.spec, row.path, TorchDevice("cpu"))
    with torch.no_grad():
        count = merge_by_hand(merged, file, 0.7)
    assert count > 90
    by_hand = outputs(merged)
    assert not same(put_on, outputs(checkpoint))
    for ours, expected in zip(put_on, by_hand, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_block_names_of_the_original_layout_mean_the_same(library, sources, tmp_path):
    row = library.require("tiny-sdxl")
    checkpoint = load(row.spec, row.path, TorchDevice("cpu"))
    drawn = []
    for original in (False, True):
        file = tmp_path / f"{original}.safetensors"
        tiny.make_lora_kohya(file, sources / "tiny-sdxl", 6, original_blocks=original)
        with loras(checkpoint.view("text-to-image", None), [Addition("lora", file, 0.7)]):
            drawn.append(outputs(checkpoint))
    assert any(key.startswith("lora_unet_input_blocks_4_1_") for key in load_file(tmp_path / "True.safetensors"))
    assert same(*drawn)


def test_diffusers_first_keys_mean_the_same_and_leave_no_trace(checkpoint, sources, tmp_path):
    saved = sources / f"tiny-{checkpoint.family}"
    older = tiny.make_lora_processors(tmp_path / "older.safetensors", saved, 5)
    newer = load_file(tiny.make_lora_diffusers(tmp_path / "newer.safetensors", saved, 5))
    newer = {key: value for key, value in newer.items() if re.search(r"\.(attn[12]|self_attn)\.", key)}
    assert len(load_file(older)) == len(newer)
    save_file(newer, tmp_path / "newer.safetensors")
    plain = outputs(checkpoint)
    before, drawn = trace(checkpoint), []
    for file in (older, tmp_path / "newer.safetensors"):
        with loras(checkpoint.view("text-to-image", None), [Addition("lora", file, 0.7)]):
            drawn.append(outputs(checkpoint))
        assert_untouched(before, trace(checkpoint))
    assert same(*drawn) and not any(torch.equal(*pair) for pair in zip(drawn[0], plain, strict=True))


def test_several_loras_leave_no_trace(checkpoint, sources):
    drawn, before = outputs(checkpoint), trace(checkpoint)
    additions = [
        Addition("one", sources / f"lora-{checkpoint.family}-kohya.safetensors", 0.7),
        Addition("two", sources / f"lora-{checkpoint.family}-diffusers.safetensors", -0.4),
    ]
    with loras(checkpoint.view("text-to-image", None), additions):
        assert not same(drawn, outputs(checkpoint))
    assert_untouched(before, trace(checkpoint))
    assert same(drawn, outputs(checkpoint))


def test_an_error_inside_the_block_leaves_no_trace(checkpoint, sources):
    drawn, before = outputs(checkpoint), trace(checkpoint)
    addition = Addition("one", sources / f"lora-{checkpoint.family}-diffusers.safetensors")
    with pytest.raises(RuntimeError, match="inside"), loras(checkpoint.view("inpaint", None), [addition]):
        raise RuntimeError("inside")
    assert_untouched(before, trace(checkpoint))
    assert same(drawn, outputs(checkpoint))


def wrong_shape(sources, family):
    state = load_file(sources / f"lora-{family}-diffusers.safetensors")
    key = sorted(key for key in state if key.startswith("unet") and "lora_B" in key)[-1]
    return state | {key: torch.cat([state[key], state[key]])}


def unknown_module(sources, family):
    state = load_file(sources / f"lora-{family}-diffusers.safetensors")
    return state | {
        "unet.down_blocks.9.attentions.0.to_q.lora_A.weight": torch.zeros(4, 32),
        "unet.down_blocks.9.attentions.0.to_q.lora_B.weight": torch.zeros(32, 4),
    }


def other_family(sources, family):
    return load_file(sources / f"lora-{'sdxl' if family == 'sd15' else 'sd15'}-kohya.safetensors")


def no_lora(sources, family):
    return {"something.weight": torch.zeros(3)}


@pytest.mark.parametrize("make", [wrong_shape, unknown_module, other_family, no_lora])
def test_a_lora_of_another_model_is_refused_and_nothing_stays(checkpoint, sources, tmp_path, make):
    save_file(make(sources, checkpoint.family), tmp_path / "foreign.safetensors")
    before = trace(checkpoint)
    good = Addition("good", sources / f"lora-{checkpoint.family}-diffusers.safetensors")
    with (
        pytest.raises(InvalidRequest, match="'foreign' was not made for this model"),
        loras(checkpoint.view("text-to-image", None), [good, Addition("foreign", tmp_path / "foreign.safetensors")]),
    ):
        pytest.fail("it was put on")
    assert_untouched(before, trace(checkpoint))


def test_a_dora_is_refused_and_not_put_on_as_a_plain_lora(checkpoint, sources, tmp_path):
    state = load_file(sources / f"lora-{checkpoint.family}-kohya.safetensors")
    ups = {key: value for key, value in state.items() if key.endswith(".lora_up.weight")}
    state |= {key.replace("lora_up.weight", "dora_scale"): torch.ones(len(value), 1) for key, value in ups.items()}
    save_file(state, tmp_path / "dora.safetensors")
    before = trace(checkpoint)
    with (
        pytest.raises(InvalidRequest, match="'dora' is a DoRA"),
        loras(checkpoint.view("text-to-image", None), [Addition("dora", tmp_path / "dora.safetensors")]),
    ):
        pytest.fail("it was put on")
    assert_untouched(before, trace(checkpoint))


def test_a_broken_file_is_refused(checkpoint, tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0not json")
    with (
        pytest.raises(InvalidRequest, match="'broken' cannot be read"),
        loras(checkpoint.view("text-to-image", None), [Addition("broken", tmp_path / "broken.safetensors")]),
    ):
        pytest.fail("it was put on")


def test_the_same_loras_again_are_taken_from_the_shelf(checkpoint, sources, monkeypatch):
    drawn, before = outputs(checkpoint), trace(checkpoint)
    built, build = [], adapters._put_on
    monkeypatch.setattr(adapters, "_put_on", lambda *given: (built.append(given), build(*given)))

    def put_on(*weights, view="text-to-image"):
        names = [f"lora-{checkpoint.family}-kohya", f"lora-{checkpoint.family}-diffusers"]
        additions = [
            Addition(name, sources / f"{name}.safetensors", weight)
            for name, weight in zip(names, weights, strict=False)
        ]
        with loras(checkpoint.view(view, None), additions, checkpoint.wardrobe):
            return outputs(checkpoint)

    first = put_on(0.7, -0.4)
    count = len(built)
    assert same(first, put_on(0.7, -0.4, view="inpaint"))
    assert len(built) == count
    assert_untouched(before, trace(checkpoint))
    assert same(drawn, outputs(checkpoint))
    assert not same(first, put_on(0.5, -0.4))
    assert not same(first, put_on(0.7))
    assert len(checkpoint.wardrobe) == 2
    assert len(built) > count
    count = len(built)
    assert same(first, put_on(0.7, -0.4)), "the oldest set is built anew"
    assert len(built) > count
    with pytest.raises(RuntimeError, match="inside"):
        additions = [Addition("kohya", sources / f"lora-{checkpoint.family}-kohya.safetensors", 0.7)]
        with loras(checkpoint.view("inpaint", None), additions, checkpoint.wardrobe):
            raise RuntimeError("inside")
    assert_untouched(before, trace(checkpoint))
    checkpoint.park()
    assert len(checkpoint.wardrobe) == 0


def text_models(checkpoint):
    return [part for name in ("text_encoder", "text_encoder_2") if (part := checkpoint.components.get(name))]


def test_a_textual_inversion_leaves_no_trace_also_after_an_error(checkpoint, sources):
    name = "moody" if checkpoint.family == "sd15" else "moodyxl"
    drawn, before = outputs(checkpoint, f"a {name} car"), trace(checkpoint)
    models = text_models(checkpoint)
    addition = Addition(name, sources / f"{name}.safetensors")
    with textual_inversions(models, [addition]) as vectors:
        encoder = build_prompt_encoder(checkpoint, (*vectors, {}))
        acting = encoder.arguments([f"a {name} car"], None, guided=False)["prompt_embeds"]
        assert not torch.equal(acting, drawn[0])
    with pytest.raises(RuntimeError, match="inside"), textual_inversions(models, [addition]):
        raise RuntimeError("inside")
    assert_untouched(before, trace(checkpoint))
    assert same(drawn, outputs(checkpoint, f"a {name} car"))


def test_textual_inversions_of_another_width_or_with_one_token_twice_are_refused(checkpoint, sources):
    models = text_models(checkpoint)
    fitting, foreign = ("moody", "moodyxl") if checkpoint.family == "sd15" else ("moodyxl", "moody")
    with (
        pytest.raises(InvalidRequest, match="was not made for this model"),
        textual_inversions(models, [Addition(foreign, sources / f"{foreign}.safetensors")]),
    ):
        pytest.fail("it was put in")
    file = sources / f"{fitting}.safetensors"
    with (
        pytest.raises(InvalidRequest, match="share the token"),
        textual_inversions(models, [Addition("a", file, token="mood"), Addition("b", file, token="Mood")]),
    ):
        pytest.fail("both were put in")


def test_a_borrow_takes_everything_off_in_the_end(runtime, library):
    def weights():
        with runtime.borrow("tiny-sdxl", task="text-to-image") as plain:
            return {key: value.clone() for key, value in plain.stock.unet.state_dict().items()}, plain.stock.vae

    before, vae = weights()
    tiles = []
    with (
        pytest.raises(RuntimeError, match="inside"),
        runtime.borrow(
            "tiny-sdxl",
            task="text-to-image",
            loras=[WeightedModel(model="lora-sdxl-kohya")],
            textual_inversions=["moodyxl"],
            vae_tiling=True,
        ) as dressed,
    ):

        def look(pipeline, step, time, tensors):
            tiles.append((pipeline.vae.use_tiling, vae.use_tiling))
            return tensors

        dressed(prompt="a moodyxl car", width=64, height=64, num_inference_steps=2, callback_on_step_end=look)
        raise RuntimeError("inside")
    after, _ = weights()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert tiles == [(True, False)] * 2, "asked for, and nobody else's"
    assert not vae.use_tiling


def test_additions_are_checked_before_the_model_is_touched(runtime):
    for extra, message in (
        ({"loras": [WeightedModel(model="moody")]}, "'moody' is no LoRA"),
        ({"textual_inversions": ["lora-sd15-kohya"]}, "is no textual inversion"),
        ({"loras": [WeightedModel(model="lora-sdxl-kohya")]}, "was made for sdxl"),
    ):
        with pytest.raises(InvalidRequest, match=message), runtime.borrow("tiny-sd15", task="inpaint", **extra):
            pytest.fail("borrowed")
    with (
        pytest.raises(WeightsMissing, match="eis models pull lcm-lora-sd15"),
        runtime.borrow("tiny-sd15", task="inpaint", loras=[WeightedModel(model="lcm-lora-sd15")]),
    ):
        pytest.fail("borrowed")
