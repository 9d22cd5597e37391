"""PuLID, InstantID and EcomID against the references: a file with the published names in, the UNet's noise out.

What the face models would have found is given by the case; everything after them is the product's own way, from the
loader to the UNet that a pipeline borrows.
"""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import normalize

from app.core.attachments import Attachment, EcomIdIdentity, FaceReference, InstantIdIdentity
from app.models import ecomid, instantid, pulid
from app.models.row_attention import Halves, cross_attentions, layers_from, misfit
from tests.parity.full_size import sdxl_unet
from tests.parity.shelf import GivenFaces, Shelf, conditions, open_runtime, put_base, put_file, put_network

TOLERANCE = 1e-4
PARTS = ("pulid-v1", "instantid")
SOMEBODY = (FaceReference(None),)
ORTHO = {"plain": "off", None: "off", "ortho": "ortho", "v1": "ortho", "ortho_v2": "ortho_v2", "v2": "ortho_v2"}


@dataclass(frozen=True, eq=False)
class TokensWish(Attachment):
    """PuLID with tokens that are there already: row 0 is the negative prompt's."""

    tokens: torch.Tensor = None
    scale: float = 1.0
    num_zero: int = 0
    ortho: str = "off"
    attach: ClassVar[str] = "tests.parity.test_identity:attach_tokens"


def attach_tokens(opened, wish, **more):
    halves = Halves(wish.tokens[1:], wish.tokens[:1])
    return opened.branch(halves, scale=wish.scale, num_zero=wish.num_zero, ortho=wish.ortho)


def error(found, expected):
    assert found.shape == expected.shape
    return float((found - expected).abs().max())


def predict(runtime, wish, case, timestep, control_image=None, scale=1.0):
    """What the borrowed UNet says of the case's latents with this wish on."""
    latent, text = case.inputs("latent", (2, 4, 16, 16)), conditions(case)
    with (
        torch.no_grad(),
        runtime.borrow("base", task="text-to-image", attachments=[wish]) as pipeline,
        pipeline.working(guided=True) as stock,
    ):
        residuals = {}
        if control_image is not None:
            down, mid = stock.controlnet(
                latent, timestep, controlnet_cond=control_image, conditioning_scale=scale, return_dict=False, **text
            )
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        return stock.unet(latent, timestep, **text, **residuals, return_dict=False)[0]


def pulid_features(case, places=17):
    pooled = normalize(case.inputs("eva_pooled", (1, 768)))[0]
    hidden = tuple(case.inputs(f"vit{depth}", (1, places, 1024))[0] for depth in range(5))
    return {"arcface": case.inputs("arcface", (1, 512))[0], "clip_pooled": pooled, "clip_hidden": hidden}


def test_pulid_v1_encoder(parity_case):
    """IDEncoder, with a face and without."""
    case = parity_case("pulid_v1")
    weights = case.tensors(case.config["keys"])
    encoder = pulid.build_encoder(weights)
    encoder.load_state_dict(weights, strict=True, assign=True)
    hidden = [case.inputs(f"vit{depth}", (2, 17, 1024)) for depth in range(5)]
    with torch.no_grad():
        found = encoder(case.inputs("id_cond", (2, 1280)), hidden)
        nobody = encoder(torch.zeros(1, 1280), [torch.zeros(1, 17, 1024)] * 5)
    assert error(found, case.expected["idencoder"]) < TOLERANCE
    assert error(nobody, case.expected["idencoder.uncond"]) < TOLERANCE


def test_pulid_idformer(parity_case):
    """IDFormer, with one picture, with two of the same person, and without."""
    case = parity_case("pulid")
    weights = case.tensors(case.config["idformer_keys"])
    encoder = pulid.build_encoder(weights, case.config["idformer"]["dim_head"])
    encoder.load_state_dict(weights, strict=True, assign=True)
    with torch.no_grad():
        one = encoder(
            case.inputs("id_cond", (1, 1, 1280)), [case.inputs(f"vit{depth}", (1, 17, 1024)) for depth in range(5)]
        )
        two = encoder(
            case.inputs("id_cond2", (1, 2, 1280)), [case.inputs(f"vit2{depth}", (1, 34, 1024)) for depth in range(5)]
        )
        nobody = encoder(torch.zeros(1, 1280), [torch.zeros(1, 17, 1024)] * 5)
    assert error(one, case.expected["idformer.one_image"]) < TOLERANCE
    assert error(two, case.expected["idformer.two_images"]) < TOLERANCE
    assert error(nobody, case.expected["idformer.uncond"]) < TOLERANCE


def put_pulid(shelf, case):
    encoder = case.tensors(case.config["idformer_keys"])
    weights = {f"id_adapter.{key}": value for key, value in encoder.items()} | case.tensors(case.config["adapter_keys"])
    put_file(shelf, "pulid", weights, task="pulid", head_dim=str(case.config["idformer"]["dim_head"]))


def test_pulid_noise(parity_case, tmp_path):
    """Every mode, number of zero tokens and scale of the case, through one file and the borrowed UNet."""
    case = parity_case("pulid")
    shelf = Shelf(tmp_path)
    put_base(shelf, case)
    put_pulid(shelf, case)
    runtime = open_runtime(shelf)
    tokens = case.inputs("id_tokens", (2, 8, 64))
    wanted = {name: noise for name, noise in case.expected.items() if name.startswith("unet.")}
    assert len(wanted) >= 9
    for name, noise in wanted.items():
        _, mode, zeros, scale = name.split(".", 3)
        wish = TokensWish(
            "pulid",
            tokens=tokens,
            scale=float(scale.removeprefix("scale")),
            num_zero=int(zeros.removeprefix("num_zero")),
            ortho=ORTHO[mode],
        )
        found = predict(runtime, wish, case, torch.tensor([500, 20]))
        assert error(found, noise) < TOLERANCE, name
    assert error(wanted["unet.ortho.num_zero8.scale0.8"], wanted["unet.ortho_v2.num_zero8.scale0.8"]) > 10 * TOLERANCE


def put_adapter(folder, case):
    folder.mkdir(parents=True)
    weights = case.tensors(case.config["image_proj_keys"]) | case.tensors(case.config["ip_adapter_keys"])
    save_file(weights, folder / instantid.ADAPTER)


def test_instantid_noise(parity_case, tmp_path):
    """The face's tokens, and the UNet with them and IdentityNet, each alone and both."""
    case = parity_case("instantid")
    shelf = Shelf(tmp_path)
    unet = put_base(shelf, case)
    folder = tmp_path / "instantid"
    put_adapter(folder, case)
    put_network(folder / instantid.NETWORK, unet, case)
    shelf.put(
        "instantid", folder, kind="identity", task="instantid", head_dim=str(case.config["resampler"]["dim_head"])
    )
    runtime = open_runtime(shelf)
    runtime.given = GivenFaces(arcface=case.inputs("arcface", (1, 1, 512))[0, 0])
    opened = instantid.load(shelf.require("instantid").spec, folder, runtime.device)
    tokens = opened.adapter.tokens(runtime.given.features.arcface)
    assert error(torch.cat(tokens.of(guided=True)), case.expected["image_tokens"]) < TOLERANCE
    drawing = case.inputs("kps_image", (1, 3, 128, 128)).sigmoid().repeat(2, 1, 1, 1)
    wanted = {name: noise for name, noise in case.expected.items() if name.startswith("noise.")}
    assert len(wanted) >= 3
    for name, noise in wanted.items():
        ip, control = (float(part) for part in name.removeprefix("noise.ip").split(".control"))
        wish = InstantIdIdentity("instantid", faces=SOMEBODY, ip_adapter_scale=ip)
        found = predict(runtime, wish, case, 500, drawing, control)
        assert error(found, noise) < TOLERANCE, name


def test_ecomid_noise(parity_case, tmp_path):
    """Its four methods, with PuLID v1's file and InstantID's beside its own."""
    case = parity_case("ecomid")
    shelf = Shelf(tmp_path)
    unet = put_base(shelf, case)
    keys = case.config
    layers = {
        key.format(number): (module.inner_dim, unet.config.cross_attention_dim)
        for number, module in cross_attentions(unet).items()
        for key in (pulid.KEY, pulid.VALUE)
    }
    identity = case.tensors(keys["id_encoder_keys"]) | case.tensors(layers)
    put_file(shelf, "pulid-v1", identity, task="pulid")
    folder = tmp_path / "instantid"
    folder.mkdir()
    save_file(case.tensors(keys["resampler_keys"]), folder / instantid.ADAPTER)
    head_dim = str(keys["resampler"]["dim_head"])
    shelf.put("instantid", folder, kind="identity", task="instantid", head_dim=head_dim)
    put_network(tmp_path / "ecomid", unet, case)
    shelf.put("ecomid", tmp_path / "ecomid", kind="identity", task="ecomid", parts=PARTS)
    runtime = open_runtime(shelf)
    runtime.given = GivenFaces(**pulid_features(case))
    opened = ecomid.load(
        shelf.require("ecomid").spec, tmp_path / "ecomid", runtime.device, parts=list(map(shelf.require, PARTS))
    )
    features = runtime.given.features
    face = opened.identity.tokens([(features.arcface, features.clip_pooled, features.clip_hidden)])
    for halves, name in ((face, "id_tokens"), (opened.adapter.tokens(features.arcface), "identitynet_tokens")):
        assert error(torch.cat(halves.of(guided=True)), case.expected[name]) < TOLERANCE, name
    drawing = case.inputs("kps_image", (1, 3, 128, 128)).sigmoid().repeat(2, 1, 1, 1)
    for method, numbers in keys["methods"].items():
        wish = EcomIdIdentity(
            "ecomid",
            faces=SOMEBODY,
            id_scale=numbers["ip_weight"],
            num_zero=numbers["num_zero"],
            ortho=ORTHO[numbers["ortho"]],
        )
        found = predict(runtime, wish, case, 500, drawing, numbers["cn_strength"])
        assert error(found, case.expected[f"noise.{method}"]) < TOLERANCE, method


@pytest.mark.parametrize(
    ("name", "build", "prefix"),
    [
        ("pulid", pulid.build_encoder, "id_adapter."),
        ("pulid_v1", pulid.build_encoder, "id_adapter."),
        ("instantid", instantid.build_projection, "image_proj."),
    ],
)
def test_the_published_files_fit_at_full_size(parity_case, name, build, prefix):
    """Every key and shape of the published file: the module's, and layers for each cross-attention of SDXL."""
    case = parity_case(name)
    state = {key: torch.empty(shape, device="meta") for key, shape in case.checkpoint_keys.items()}
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    module = build(own)
    assert {key: value.shape for key, value in module.state_dict().items()} == {
        key: value.shape for key, value in own.items()
    }
    names = (pulid.KEY, pulid.VALUE) if name.startswith("pulid") else (instantid.KEY, instantid.VALUE)
    layers = layers_from(state, *names)
    assert misfit(layers, sdxl_unet()) is None
    assert len(own) + 2 * len(layers) == len(state)
