"""IP-Adapter gives the stock pipeline's picture, refuses a wrong encoder by name, and leaves nothing behind."""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from app.core.attachments import FaceReference, ImagePrompt
from app.errors import InvalidRequest
from app.models.ip_adapter import KEY, VALUE, load, square
from app.models.row_attention import cross_attentions
from tests.parity.shelf import Shelf, open_runtime

STATES, EMBEDDING = 96, 48
"""Widths of the tiny encoder."""
PIPELINES = {"sd15": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}
ARGUMENTS = {"prompt": "a red car", "width": 64, "height": 64, "num_inference_steps": 2, "guidance_scale": 4.0}


def drawn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) / max(1, shape[-1]) ** 0.5


def write_encoder(folder, *, states=STATES, embedding=EMBEDDING):
    torch.manual_seed(1)
    config = CLIPVisionConfig(
        hidden_size=states, intermediate_size=64, projection_dim=embedding, num_hidden_layers=3, num_attention_heads=4,
        image_size=32, patch_size=8,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).eval().save_pretrained(folder)
    return folder


def projection(kind, width):
    """`image_proj` in the published names, at a tiny size."""
    dim = 64
    if kind == "faceid-plus":
        return faceid_plus(width)
    if kind == "plain":
        linear = {"proj": (4 * width, EMBEDDING)}
        norms = {"norm": width}
    elif kind == "full":
        linear = {"proj.0": (STATES, STATES), "proj.2": (width, STATES)}
        norms = {"proj.3": width}
    elif kind == "faceid":
        linear = {"proj.0": (1024, 512), "proj.2": (4 * width, 1024)}
        norms = {"norm": width}
    else:
        linear = {"proj_in": (dim, STATES), "proj_out": (width, dim)}
        norms = {"norm_out": width} | {
            f"layers.{number}.{part}": dim for number in range(4) for part in ("0.norm1", "0.norm2", "1.0")
        }
    state = {f"{name}.weight": drawn(*shape, seed=len(name)) for name, shape in linear.items()}
    state |= {f"{name}.bias": drawn(shape[0], seed=len(name) + 1) for name, shape in linear.items()}
    state |= {f"{name}.weight": torch.ones(size) for name, size in norms.items()}
    state |= {f"{name}.bias": torch.zeros(size) for name, size in norms.items()}
    if kind == "plus":
        state["latents"] = drawn(1, 6, dim, seed=2)
        shapes = {
            "0.to_q": (64, dim),
            "0.to_kv": (128, dim),
            "0.to_out": (dim, 64),
            "1.1": (256, dim),
            "1.3": (dim, 256),
        }
        for number in range(4):
            for place, (name, shape) in enumerate(shapes.items()):
                state[f"layers.{number}.{name}.weight"] = drawn(*shape, seed=10 * number + place)
    return state


def faceid_plus(width):
    """FaceID plus: the face's own tokens, and a resampler through which they look at its picture."""
    linear = {"proj.0": (1024, 512), "proj.2": (4 * width, 1024)}
    linear |= {f"perceiver_resampler.{name}": shape for name, shape in {
        "proj_in": (width, STATES), "proj_out": (width, width),
    }.items()}  # fmt: skip
    state = {f"{name}.weight": drawn(*shape, seed=len(name)) for name, shape in linear.items()}
    state |= {f"{name}.bias": drawn(shape[0], seed=len(name) + 1) for name, shape in linear.items()}
    norms = ["norm", "perceiver_resampler.norm_out"]
    shapes = {"0.to_q": (64, width), "0.to_kv": (128, width), "0.to_out": (width, 64), "1.1": (4 * width, width),
              "1.3": (width, 4 * width)}  # fmt: skip
    for number in range(4):
        layer = f"perceiver_resampler.layers.{number}."
        norms += [f"{layer}{part}" for part in ("0.norm1", "0.norm2", "1.0")]
        for place, (name, shape) in enumerate(shapes.items()):
            state[f"{layer}{name}.weight"] = drawn(*shape, seed=10 * number + place)
    state |= {f"{name}.weight": torch.ones(width) for name in norms}
    return state | {f"{name}.bias": torch.zeros(width) for name in norms}


def adapter(kind, unet, *, lora=False):
    """A whole adapter for this UNet."""
    width = unet.config.cross_attention_dim
    state = {f"image_proj.{name}": value for name, value in projection(kind, width).items()}
    for number, module in cross_attentions(unet).items():
        for place, key in enumerate((KEY, VALUE)):
            state[key.format(number)] = 3 * drawn(module.inner_dim, width, seed=100 + 2 * number + place)
    if lora:
        for number, name in enumerate(unet.attn_processors):
            module = unet.get_submodule(name.removesuffix(".processor"))
            for layer in ("to_q", "to_k", "to_v", "to_out"):
                linear = module.to_out[0] if layer == "to_out" else getattr(module, layer)
                state[f"ip_adapter.{number}.{layer}_lora.down.weight"] = drawn(4, linear.in_features, seed=300 + number)
                state[f"ip_adapter.{number}.{layer}_lora.up.weight"] = drawn(linear.out_features, 4, seed=500 + number)
    return state


@pytest.fixture(scope="module")
def shelf(sources, tmp_path_factory):
    shelf = Shelf(tmp_path_factory.mktemp("shelf"))
    write_encoder(shelf.folder / "encoder")
    write_encoder(shelf.folder / "other-encoder", states=80, embedding=40)
    for name in ("encoder", "other-encoder"):
        shelf.put(name, shelf.folder / name, kind="image-encoder", task="", family="other", layout="folder")
    for family in PIPELINES:
        base = sources / f"tiny-{family}"
        shelf.put(family, base, kind="checkpoint", task="text-to-image", family=family, layout="diffusers")
        unet = PIPELINES[family].from_pretrained(base).unet
        for kind in ("plain", "plus", "full", "faceid"):
            path = shelf.folder / f"{kind}-{family}.safetensors"
            save_file(adapter(kind, unet, lora=kind == "faceid"), path)
            parts = () if kind == "faceid" else ("encoder",)
            shelf.put(f"{kind}-{family}", path, kind="ip-adapter", task="ip-adapter", family=family, parts=parts)
        path = shelf.folder / f"faceid-plus-{family}.safetensors"
        save_file(adapter("faceid-plus", unet), path)
        for id, more in (("faceid-plus", {}), ("faceid-plusv2", {"shortcut": "true"})):
            shelf.put(
                f"{id}-{family}", path, kind="ip-adapter", task="ip-adapter", family=family, parts=("encoder",), **more
            )
        shelf.put(
            f"mismatched-{family}", shelf.folder / f"plus-{family}.safetensors", kind="ip-adapter", task="ip-adapter",
            family=family, parts=("other-encoder",),
        )  # fmt: skip
    return shelf


@pytest.fixture(scope="module")
def runtime(shelf):
    runtime = open_runtime(shelf)
    yield runtime
    runtime.close()


def picture(seed, size=(40, 40)):
    noise = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def draw(runtime, model, wishes=(), steps=2):
    arguments = ARGUMENTS | {"num_inference_steps": steps}
    with runtime.borrow(model, task="text-to-image", scheduler="DDIM", attachments=wishes) as pipeline:
        answer = pipeline(**arguments, generator=torch.Generator().manual_seed(0))
    return np.asarray(answer.images[0]).astype(int)


def stock(shelf, family, adapter_name):
    """The stock pipeline with the stock way to load an adapter."""
    from app.models import schedulers

    base = shelf.require(family).path
    pipeline = PIPELINES[family].from_pretrained(base)
    more = {"safety_checker": None} if family == "sd15" else {}
    pipeline.register_modules(**more)
    pipeline.scheduler = schedulers.create("DDIM", dict(pipeline.scheduler.config))
    pipeline.image_encoder = CLIPVisionModelWithProjection.from_pretrained(shelf.folder / "encoder")
    pipeline.feature_extractor = CLIPImageProcessor(size=32, crop_size=32)
    path = shelf.require(adapter_name).path
    pipeline.load_ip_adapter(str(path.parent), subfolder="", weight_name=path.name, image_encoder_folder=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("family", PIPELINES)
@pytest.mark.parametrize("kind", ["plain", "plus", "full"])
def test_it_gives_the_stock_pipelines_picture(shelf, runtime, family, kind):
    """One picture as a prompt, and two that are looked at as one."""
    expected = stock(shelf, family, f"{kind}-{family}")
    expected.set_ip_adapter_scale(0.7)
    plain = draw(runtime, family)
    for images in ([picture(1)], [picture(1), picture(2)]):
        found = draw(runtime, family, [ImagePrompt(f"{kind}-{family}", images=images, scale=0.7)])
        wanted = expected(**ARGUMENTS, ip_adapter_image=[images], generator=torch.Generator().manual_seed(0)).images[0]
        assert np.abs(found - np.asarray(wanted).astype(int)).max() <= 1
        assert np.abs(found - plain).max() > 8
    assert (draw(runtime, family) == plain).all()


@pytest.mark.parametrize("family", PIPELINES)
def test_pictures_with_masks_are_the_stock_pipelines(shelf, runtime, family):
    """Two pictures, each in a half of its own and with a weight of its own."""
    from diffusers.image_processor import IPAdapterMaskProcessor

    left = Image.new("L", (64, 64))
    left.paste(255, (0, 0, 32, 64))
    right = Image.new("L", (64, 64), 255)
    right.paste(0, (0, 0, 32, 64))
    images, masks = [picture(1), picture(2)], [left, right]
    expected = stock(shelf, family, f"plus-{family}")
    expected.set_ip_adapter_scale([[0.5, 0.9]])
    stacked = IPAdapterMaskProcessor().preprocess(masks, height=64, width=64)
    wanted = expected(
        **ARGUMENTS, ip_adapter_image=[images], generator=torch.Generator().manual_seed(0),
        cross_attention_kwargs={"ip_adapter_masks": [stacked.reshape(1, 2, 64, 64)]},
    ).images[0]  # fmt: skip
    wish = ImagePrompt(f"plus-{family}", images=images, scale=1.0, scales=(0.5, 0.9), masks=masks)
    found = draw(runtime, family, [wish])
    assert np.abs(found - np.asarray(wanted).astype(int)).max() <= 1


@contextmanager
def faces_of(runtime, vector):
    crop = lambda face, side: face.image.resize((side, side))  # noqa: E731
    runtime.given = SimpleNamespace(arcface=lambda face: vector, crop=crop)
    try:
        yield
    finally:
        runtime.given = None


@pytest.mark.parametrize("family", PIPELINES)
def test_a_faceid_file_brings_its_lora_along(shelf, runtime, family):
    """The stock way loads the LoRA in the file too; the vector is looked at in its unit length."""
    vector = drawn(512, seed=9) * 20
    expected = stock(shelf, family, f"faceid-{family}")
    expected.set_ip_adapter_scale(0.7)
    unit = torch.nn.functional.normalize(vector, dim=-1)[None, None]
    embeds = [torch.cat([torch.zeros_like(unit), unit])]
    wanted = expected(**ARGUMENTS, ip_adapter_image_embeds=embeds, generator=torch.Generator().manual_seed(0)).images[0]
    with faces_of(runtime, vector):
        wish = ImagePrompt(f"faceid-{family}", faces=[FaceReference(picture(1))], scale=0.7)
        found = draw(runtime, family, [wish])
        assert np.abs(found - np.asarray(wanted).astype(int)).max() <= 1
        without = load_file(shelf.require(f"faceid-{family}").path)
        assert any("_lora." in name for name in without)


@pytest.mark.parametrize("family", PIPELINES)
def test_faceid_plus_v2_adds_the_look_to_who_it_is_as_much_as_is_asked(shelf, runtime, family):
    """At 0 the face's own tokens stand alone; each unit adds the tokens that the first version has."""
    vector, faces = drawn(512, seed=9) * 20, [FaceReference(picture(1))]
    state = {name.removeprefix("image_proj."): value for name, value in load_file(
        shelf.require(f"faceid-plus-{family}").path
    ).items() if name.startswith("image_proj.")}  # fmt: skip
    unit = functional.normalize(vector, dim=-1)
    hidden = functional.gelu(functional.linear(unit, state["proj.0.weight"], state["proj.0.bias"]))
    own = functional.linear(hidden, state["proj.2.weight"], state["proj.2.bias"]).unflatten(-1, (4, -1))
    own = functional.layer_norm(own, own.shape[-1:])[None]

    def tokens(id, scale=1.0):
        row, parts = shelf.require(f"{id}-{family}"), [shelf.require("encoder")]
        return load(row.spec, row.path, runtime.device, parts).tokens([picture(1)], [vector], scale).prompt

    look = tokens("faceid-plus")
    for scale in (0.0, 1.0, 2.5):
        assert torch.allclose(tokens("faceid-plusv2", scale), own + scale * look, atol=1e-4)
    with faces_of(runtime, vector):
        made = [
            draw(runtime, family, [ImagePrompt(f"faceid-plusv2-{family}", faces=faces, shortcut_scale=scale)])
            for scale in (0.0, 2.5)
        ]
        assert np.abs(made[0] - made[1]).max() > 1
        for id in ("faceid-plus", "faceid"):
            with pytest.raises(InvalidRequest, match="shortcut_scale is for FaceID plus v2"):
                draw(runtime, family, [ImagePrompt(f"{id}-{family}", faces=faces, shortcut_scale=0.5)])


def test_an_encoder_of_another_adapter_is_refused_by_both_names(runtime):
    with pytest.raises(InvalidRequest, match=r"'mismatched-sdxl'.*'other-encoder'"):
        draw(runtime, "sdxl", [ImagePrompt("mismatched-sdxl", images=[picture(1)])])


def test_an_adapter_of_another_family_is_refused(runtime):
    with pytest.raises(InvalidRequest, match="made for sd15"):
        draw(runtime, "sdxl", [ImagePrompt("plus-sd15", images=[picture(1)])])


def test_a_faceid_adapter_asks_for_faces(runtime):
    with pytest.raises(InvalidRequest, match="reads faces"):
        draw(runtime, "sdxl", [ImagePrompt("faceid-sdxl", images=[picture(1)])])


def test_a_picture_that_is_not_square_keeps_its_borders():
    """What stands at the very edge is still there, and the proportions are."""
    image = Image.new("RGB", (60, 20), (10, 200, 10))
    image.paste((250, 0, 0), (0, 0, 3, 20))
    whole = square(image)
    assert whole.size == (60, 60)
    assert whole.getpixel((1, 30)) == (250, 0, 0)
    assert np.asarray(whole.crop((0, 20, 60, 40))).tolist() == np.asarray(image).tolist()


def test_style_and_layout_are_blocks_of_their_own(runtime):
    """The tiny model has the block for style, and none for layout: it says so."""
    style, everywhere = (
        draw(runtime, "sdxl", [ImagePrompt("plus-sdxl", images=[picture(1)], blocks=blocks)])
        for blocks in ("style", "all")
    )
    assert np.abs(style - everywhere).max() > 2
    with pytest.raises(InvalidRequest, match="'layout'"):
        draw(runtime, "sdxl", [ImagePrompt("plus-sdxl", images=[picture(1)], blocks="layout")])


def test_a_window_that_never_opens_changes_nothing(runtime):
    """It acts in its share of the steps only."""
    plain = draw(runtime, "sdxl", steps=4)
    late = ImagePrompt("plus-sdxl", images=[picture(1)], start=0.999, end=1.0)
    early = ImagePrompt("plus-sdxl", images=[picture(1)], end=0.3)
    always = ImagePrompt("plus-sdxl", images=[picture(1)])
    assert np.abs(draw(runtime, "sdxl", [late], 4) - plain).max() <= 1
    half, whole = draw(runtime, "sdxl", [early], 4), draw(runtime, "sdxl", [always], 4)
    assert np.abs(half - plain).max() > 2 and np.abs(half - whole).max() > 2
