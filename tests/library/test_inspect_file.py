"""What files are recognised as, by the names and shapes that published files have."""

import json
import struct
from pathlib import Path

import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from app.errors import InvalidRequest
from app.models.inspect_file import inspect
from app.models.inspection import MAX_HEADER, read_header

ALL = ("text-to-image", "image-to-image", "inpaint")
UNET = "model.diffusion_model."
VAE = {
    "first_stage_model.encoder.conv_in.weight": (128, 3, 3, 3),
    "first_stage_model.decoder.conv_out.weight": (3, 128, 3, 3),
}


def sparse(path: Path, shapes: dict[str, tuple[int, ...]], metadata: dict[str, str] | None = None) -> Path:
    """A `.safetensors` file of these names and shapes in float16, whose zeros take no room on the disk."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        size = 2
        for side in shape:
            size *= side
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


def sd15(channels: int = 4) -> dict[str, tuple[int, ...]]:
    return VAE | {
        UNET + "input_blocks.0.0.weight": (320, channels, 3, 3),
        UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
        UNET + "output_blocks.11.0.skip_connection.weight": (320, 640, 1, 1),
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (49408, 768),
        "alphas_cumprod": (1000,),
    }


def sdxl(channels: int = 4) -> dict[str, tuple[int, ...]]:
    return VAE | {
        UNET + "input_blocks.0.0.weight": (320, channels, 3, 3),
        UNET + "label_emb.0.0.weight": (1280, 2816),
        UNET + "input_blocks.4.1.transformer_blocks.1.attn2.to_k.weight": (640, 2048),
        "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight": (49408, 768),
        "conditioner.embedders.1.model.token_embedding.weight": (49408, 1280),
    }


def without(shapes: dict[str, tuple[int, ...]], start: str) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in shapes.items() if not name.startswith(start)}


def test_single_file_checkpoints(tmp_path: Path):
    found = inspect(sparse(tmp_path / "a.safetensors", sd15()))
    assert (found.kind, found.family, found.tasks, found.parts) == ("checkpoint", "sd15", ALL, ())
    assert found.recommended.width == 512 and found.options == {"layout": "single-file"}
    found = inspect(sparse(tmp_path / "b.safetensors", sdxl()))
    assert (found.kind, found.family, found.tasks, found.parts) == ("checkpoint", "sdxl", ALL, ())
    assert found.recommended.width == 1024
    for shapes in (sd15(9), sdxl(9)):
        assert inspect(sparse(tmp_path / "c.safetensors", shapes)).tasks == ("inpaint",)
    found = inspect(sparse(tmp_path / "d.safetensors", without(sdxl(), "first_stage_model")))
    assert found.parts == ("sdxl-vae-fp16-fix",)
    found = inspect(sparse(tmp_path / "e.safetensors", sdxl() | {"v_pred": (0,)}))
    assert found.options["prediction_type"] == "v_prediction"
    assert found.recommended.scheduler == "DPM++ 2M Karras"
    found = inspect(sparse(tmp_path / "e.safetensors", sdxl() | {"v_pred": (0,), "ztsnr": (0,)}))
    assert (found.recommended.scheduler, found.recommended.width) == ("Euler", 1024)
    found = inspect(sparse(tmp_path / "f.safetensors", sdxl(), {"modelspec.prediction_type": "v"}))
    assert found.options["prediction_type"] == "v_prediction"
    cosxl = sdxl(8) | {"edm_vpred.sigma_max": (), "edm_vpred.sigma_min": ()}
    found = inspect(sparse(tmp_path / "g.safetensors", cosxl))
    assert found.tasks == ("instruct-pix2pix",) and found.recommended.scheduler == "Euler"


REFUSED = {
    "refiner": (
        without(sdxl(), "conditioner.embedders.1") | {"conditioner.embedders.0.model.ln_final.bias": (1280,)},
        "refiner",
    ),
    "sd2": (
        without(sd15(), "cond_stage_model") | {"cond_stage_model.model.transformer.resblocks.0.ln_1.bias": (1024,)},
        "Stable Diffusion 2",
    ),
    "sd15 without VAE": (without(sd15(), "first_stage_model"), "without an autoencoder"),
    "CosXL": (sdxl() | {"edm_vpred.sigma_max": (), "edm_vpred.sigma_min": ()}, "EDM"),
    "Playground v2.5": (sdxl() | {"edm_mean": (1, 4, 1, 1), "edm_std": (1, 4, 1, 1)}, "EDM"),
    "five-channels": (sd15(5), "5 channels"),
    "flux": (
        {"double_blocks.0.img_attn.norm.key_norm.scale": (128,), "img_in.weight": (3072, 64)},
        "no Stable Diffusion",
    ),
    "unet alone": ({UNET + "input_blocks.0.0.weight": (320, 4, 3, 3)}, "UNet alone"),
    "diffusers unet alone": (
        {"conv_in.weight": (320, 4, 3, 3), "down_blocks.0.resnets.0.conv1.weight": (320, 320, 3, 3)},
        "UNet alone",
    ),
    "flux lora": ({"transformer.single_blocks.0.attn.to_k.lora_A.weight": (16, 3072)}, "another family"),
    "flux lora with CLIP": (
        {
            "lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": (16, 3072),
            "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (16, 768),
        },
        "changes a text encoder",
    ),
    "flux lora in the original's names": (
        {"diffusion_model.double_blocks.0.img_attn.proj.lora_A.weight": (16, 3072)},
        "original network's own names",
    ),
    "flux dora": (
        {
            "lora_unet_single_blocks_0_linear2.lora_down.weight": (16, 15360),
            "lora_unet_single_blocks_0_linear2.dora_scale": (3072, 1),
        },
        "DoRA",
    ),
    "loha": ({"lora_unet_down_blocks_1_attentions_0_proj_in.hada_w1_a": (640, 8)}, "LoHa"),
    "lokr": ({"lora_unet_down_blocks_1_attentions_0_proj_in.lokr_w1": (8, 8)}, "LoKr"),
    "dora": (
        {
            "lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight": (8, 640),
            "lora_unet_down_blocks_1_attentions_0_proj_in.lora_up.weight": (640, 8),
            "lora_unet_down_blocks_1_attentions_0_proj_in.dora_scale": (640, 1),
        },
        "DoRA",
    ),
    "sd2 lora": (
        {"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": (4, 1024)},
        "Stable Diffusion 2",
    ),
    "first keys without a component": (
        {"down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.down.weight": (4, 768)},
        "bare set",
    ),
    "nameless lora": ({"some.layer.lora_A.weight": (4, 77)}, "neither"),
    "sd2 embedding": ({"emb_params": (4, 1024)}, "another text encoder"),
    "something": ({"a": (1,), "b": (1,), "c": (3, 3)}, "no Stable Diffusion"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_served_is_named(tmp_path: Path, name: str):
    shapes, sentence = REFUSED[name]
    with pytest.raises(InvalidRequest, match=sentence):
        inspect(sparse(tmp_path / "x.safetensors", shapes))


LORAS = {
    "kohya sd15": (
        "sd15",
        "kohya",
        {"lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": (4, 768)},
    ),
    "kohya sdxl": (
        "sdxl",
        "kohya",
        {"lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight": (4, 2048)},
    ),
    "kohya sdxl in diffusers' names": (
        "sdxl",
        "kohya",
        {"lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": (4, 2048)},
    ),
    "kohya sdxl text encoder": (
        "sdxl",
        "kohya",
        {"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (4, 768)},
    ),
    "kohya sd15 text encoder": (
        "sd15",
        "kohya",
        {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (4, 768)},
    ),
    "kohya locon of the deep blocks": (
        "sdxl",
        "kohya",
        {"lora_unet_middle_block_1_transformer_blocks_7_ff_net_0_proj.lora_down.weight": (4, 1280)},
    ),
    "peft": (
        "sdxl",
        "diffusers",
        {"unet.down_blocks.2.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight": (4, 2048)},
    ),
    "peft sd15": (
        "sd15",
        "diffusers",
        {"unet.up_blocks.3.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight": (4, 320)},
    ),
    "old diffusers": (
        "sd15",
        "diffusers",
        {
            "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.down.weight": (4, 768),
            "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora.down.weight": (4, 768),
        },
    ),
    "diffusers' first keys": (
        "sdxl",
        "diffusers",
        {"unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.down.weight": (4, 2048)},
    ),
    "diffusers' first keys of a text encoder": (
        "sd15",
        "diffusers",
        {"text_encoder.text_model.encoder.layers.0.self_attn.to_k_lora.down.weight": (4, 768)},
    ),
    "a text encoder's linear layers": (
        "sd15",
        "diffusers",
        {"text_encoder.text_model.encoder.layers.0.self_attn.k_proj.lora_linear_layer.down.weight": (4, 768)},
    ),
    "kohya's of FLUX": ("flux", "kohya", {"lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": (16, 3072)}),
    "diffusers' of FLUX": (
        "flux",
        "diffusers",
        {
            "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": (16, 3072),
            "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": (16, 3072),
        },
    ),
    "XLabs' of FLUX": ("flux", "diffusers", {"double_blocks.0.processor.proj_lora1.down.weight": (16, 3072)}),
    "Qwen-Image's": (
        "qwen-image",
        "diffusers",
        {"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": (16, 3072)},
    ),
    "second text encoder": (
        "sdxl",
        "diffusers",
        {"text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight": (4, 1280)},
    ),
}


@pytest.mark.parametrize("name", LORAS)
def test_loras_and_their_families(tmp_path: Path, name: str):
    family, form, shapes = LORAS[name]
    found = inspect(sparse(tmp_path / "x.safetensors", shapes))
    assert (found.kind, found.family, found.options["format"], found.tasks) == ("lora", family, form, ())


def test_a_lora_of_double_blocks_alone_is_fluxs_where_it_says_so(tmp_path: Path):
    shapes = LORAS["Qwen-Image's"][2]
    for told in ({"ss_base_model_version": "flux1"}, {"modelspec.architecture": "Step1X-Edit/lora"}):
        assert inspect(sparse(tmp_path / "x.safetensors", shapes, told)).family == "flux"


def test_the_trigger_phrase_of_a_lora_is_kept(tmp_path: Path):
    shapes = LORAS["peft"][2]
    found = inspect(sparse(tmp_path / "x.safetensors", shapes, {"modelspec.trigger_phrase": "in the style of nobody"}))
    assert found.options["trigger"] == "in the style of nobody"


def test_other_kinds(tmp_path: Path):
    vae = {name.removeprefix("first_stage_model."): shape for name, shape in VAE.items()}
    cases = {
        "e1": ({"emb_params": (8, 768)}, "embedding", "sd15"),
        "e2": ({"<cat>": (768,)}, "embedding", "sd15"),
        "e3": ({"clip_l": (4, 768), "clip_g": (4, 1280)}, "embedding", "sdxl"),
        "vae-ft-mse": (vae, "vae", "sd15"),
        "sdxl_vae": (VAE, "vae", "sdxl"),
        "c1": (
            {
                "controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3),
                "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (320, 768),
            },
            "controlnet",
            "sd15",
        ),
        "c2": (
            {"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3), "add_embedding.linear_1.weight": (1280, 2816)},
            "controlnet",
            "sdxl",
        ),
        "c3": ({"control_model.time_embed.0.weight": (1280, 320)}, "controlnet", "sd15"),
    }
    for stem, (shapes, kind, family) in cases.items():
        found = inspect(sparse(tmp_path / f"{stem}.safetensors", shapes))
        assert (found.kind, found.family) == (kind, family), stem


def header_file(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


MALFORMED = [
    b"",
    b"{",
    b"[]",
    b"{}",
    b"null",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"a": 1}',
    b'{"__metadata__": []}',
    {"a": {"dtype": "F16", "shape": [1]}},
    {"a": {"dtype": "F16", "shape": [-1], "data_offsets": [0, 2]}},
    {"a": {"dtype": "F16", "shape": ["1"], "data_offsets": [0, 2]}},
    {"a": {"dtype": "F16", "shape": [1], "data_offsets": [2, 0]}},
    {"a": {"dtype": "F16", "shape": [True], "data_offsets": [0, 2]}},
    {"a": {"dtype": 3, "shape": [1], "data_offsets": [0, 2]}},
    {"a": {"dtype": "F16", "shape": [1], "data_offsets": [0, 1e3]}},
    {"a": {"dtype": "F16", "shape": [1], "data_offsets": [0]}},
    {"a": {"dtype": "F16", "shape": [1] * 40, "data_offsets": [0, 2]}},
]


@pytest.mark.parametrize("number", range(len(MALFORMED)))
def test_a_malformed_header_is_an_invalid_request(tmp_path: Path, number: int):
    with pytest.raises(InvalidRequest, match=r"not a sound \.safetensors file"):
        inspect(header_file(tmp_path / "x.safetensors", MALFORMED[number], b"\0\0"))


def test_a_cut_file_is_noticed(tmp_path: Path):
    path = sparse(tmp_path / "x.safetensors", {"clip_l": (4, 768), "clip_g": (4, 1280)})
    whole = path.read_bytes()
    for length in (0, 7, 8, 40, len(whole) - 1, len(whole) + 1):
        path.write_bytes((whole + b"\0")[:length])
        with pytest.raises(InvalidRequest):
            inspect(path)


def test_an_enormous_header_is_not_read(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    for stated in (MAX_HEADER + 1, 2**63, 2**64 - 1):
        with path.open("wb") as file:
            file.write(struct.pack("<Q", stated))
            file.truncate(MAX_HEADER * 2)
        with pytest.raises(InvalidRequest):
            read_header(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path: Path, data: bytes):
    path = tmp_path / "x.safetensors"
    for content in (data, struct.pack("<Q", len(data)) + data):
        path.write_bytes(content)
        with pytest.raises(InvalidRequest):
            inspect(path)


def test_our_reading_agrees_with_the_library(tmp_path: Path):
    state = {"a.b": numpy.ones((2, 3), dtype=numpy.float32), "c": numpy.zeros((4,), dtype=numpy.float16)}
    save_file(state, tmp_path / "x.safetensors", metadata={"format": "pt"})
    header = read_header(tmp_path / "x.safetensors")
    assert header.shapes == {"a.b": (2, 3), "c": (4,)} and header.metadata == {"format": "pt"}


def folder(path: Path, index: dict[str, object], unet: dict[str, object] | None = None) -> Path:
    for name, value in index.items():
        if isinstance(value, list) and value[0]:
            (path / name).mkdir(parents=True, exist_ok=True)
            stem = "diffusion_pytorch_model" if name in ("unet", "vae") else "model"
            save_file({"w": numpy.zeros(3, dtype=numpy.float32)}, path / name / f"{stem}.safetensors")
            (path / name / "config.json").write_text("{}")
    (path / "model_index.json").write_text(json.dumps(index))
    (path / "unet" / "config.json").write_text(json.dumps(unet or {"in_channels": 4}))
    return path


SD = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "PNDMScheduler"],
}
XL = SD | {
    "_class_name": "StableDiffusionXLPipeline",
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
}


def test_diffusers_folders(tmp_path: Path):
    assert inspect(folder(tmp_path / "a", SD)).family == "sd15"
    found = inspect(folder(tmp_path / "b", XL, {"in_channels": 9}))
    assert (found.family, found.tasks, found.options) == ("sdxl", ("inpaint",), {"layout": "diffusers"})
    (tmp_path / "a" / "unet" / "diffusion_pytorch_model.safetensors").rename(
        tmp_path / "a" / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    )
    assert inspect(tmp_path / "a").options["variant"] == "fp16"


def test_folders_that_are_refused(tmp_path: Path):
    cases = [
        (SD | {"_class_name": "FluxPipeline"}, None, "neither"),
        (XL | {"text_encoder": [None, None], "_class_name": "StableDiffusionXLImg2ImgPipeline"}, None, "refiner"),
        (SD | {"unet": ["my_unet_code", "MyUNet"]}, None, "code of its own"),
        (SD | {"unet": ["../evil", "MyUNet"]}, None, "code of its own"),
        (SD, {"in_channels": 4, "cross_attention_dim": 1024}, "Stable Diffusion 2"),
        (SD, {"in_channels": 5}, "5 channels"),
        (XL | {"scheduler": ["diffusers", "EDMDPMSolverMultistepScheduler"]}, None, "EDM"),
    ]
    for number, (index, unet, sentence) in enumerate(cases):
        made = folder(tmp_path / str(number), index, unet)
        with pytest.raises(InvalidRequest, match=sentence):
            inspect(made)
    pickled = folder(tmp_path / "pickled", SD)
    weights = pickled / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(InvalidRequest, match="pickle"):
        inspect(pickled)
    weights.with_suffix(".bin").unlink()
    with pytest.raises(InvalidRequest, match=r"no diffusion_pytorch_model\.safetensors"):
        inspect(pickled)
    cut = folder(tmp_path / "cut", SD)
    (cut / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"\x10")
    with pytest.raises(InvalidRequest):
        inspect(cut)
    (cut / "model_index.json").write_text("[" * 100_000)
    with pytest.raises(InvalidRequest, match="cannot be read"):
        inspect(cut)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidRequest, match=r"no model_index\.json"):
        inspect(tmp_path / "empty")


def test_tiny_real_checkpoints_and_additions_are_recognised(tmp_path: Path):
    """Saved by diffusers itself and in the original layout; their sizes are nobody's, their names are the real ones."""
    from tests.models import tiny_checkpoints as tiny

    for family, make, make_file in (
        ("sd15", tiny.make_sd15, tiny.make_sd15_single_file),
        ("sdxl", tiny.make_sdxl, tiny.make_sdxl_single_file),
    ):
        saved = make(tmp_path / family)
        for found in (inspect(saved), inspect(make_file(tmp_path / f"{family}-file" / "x.safetensors"))):
            assert (found.kind, found.family, found.tasks) == ("checkpoint", family, ALL)
            assert (found.recommended.width, found.recommended.height) == (64, 64)
        assert inspect(make(tmp_path / f"{family}-inpaint", in_channels=9)).tasks == ("inpaint",)
        for write in (tiny.make_lora_diffusers, tiny.make_lora_kohya, tiny.make_lora_processors):
            file = write(tmp_path / f"{family}.safetensors", saved, text_encoders=False)
            assert (inspect(file).kind, inspect(file).family) == ("lora", family), write
    assert inspect(tiny.make_embedding_sd15(tmp_path / "e.safetensors")).family == "sd15"
    assert inspect(tiny.make_embedding_sdxl(tmp_path / "e.safetensors")).family == "sdxl"


CONTROL = {"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3), "add_embedding.linear_1.weight": (1280, 2816)}


@pytest.mark.parametrize(
    ("stem", "tasks"),
    [
        ("control_v11p_sd15_canny", ("controlnet-canny",)),
        ("control_v11f1p_sd15_depth_fp16", ("controlnet-depth",)),
        ("control_v11p_sd15s2_lineart_anime", ("controlnet-lineart_anime",)),
        ("control_v11p_sd15_lineart", ("controlnet-lineart",)),
        ("control_v11p_sd15_seg", ("controlnet-segmentation",)),
        ("OpenPoseXL2", ("controlnet-openpose",)),
        ("xinsir-tile-sdxl", ("controlnet-tile",)),
        ("kohya_controllllite", ()),
    ],
)
def test_what_a_controlnet_follows_is_read_off_its_name(tmp_path: Path, stem: str, tasks: tuple[str, ...]):
    found = inspect(sparse(tmp_path / f"{stem}.safetensors", CONTROL))
    assert (found.kind, found.tasks, found.loader) == ("controlnet", tasks, "app.models.controls:load")


@pytest.mark.parametrize(("count", "last"), [(6, "segmentation"), (8, "inpaint")])
def test_a_union_network_follows_as_many_types_as_it_has_numbers_for(tmp_path: Path, count: int, last: str):
    found = inspect(sparse(tmp_path / "union.safetensors", CONTROL | {"task_embedding": (count, 320)}))
    assert found.options["shape"] == "union" and found.family == "sdxl"
    assert f"controlnet-{last}" in found.tasks and "controlnet-canny" in found.tasks
    assert ("controlnet-tile" in found.tasks) == (count == 8)


def test_a_checkpoint_of_eight_channels_edits_by_instruction(tmp_path: Path):
    for family in (sd15, sdxl):
        assert inspect(sparse(tmp_path / "edit.safetensors", family(8))).tasks == ("instruct-pix2pix",)
