"""A face, further ControlNets and picture prompts on one UNet: all of them act, in any order, and come off again."""

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file

from app.core.attachments import ControlNet, EcomIdIdentity, ImagePrompt, InstantIdIdentity, PulidIdentity
from app.errors import InvalidRequest
from tests.models.test_identity_sharing import DRAWING, FACES, state_of, write_models
from tests.models.test_ip_adapter import adapter, write_encoder
from tests.parity import cases
from tests.parity.shelf import GivenFaces, Shelf, open_runtime, put_network

EDGES = Image.fromarray(np.random.default_rng(6).integers(0, 255, (64, 64, 3), np.uint8))
PICTURE = Image.fromarray(np.random.default_rng(7).integers(0, 255, (48, 48, 3), np.uint8))


def write_companions(shelf):
    """A ControlNet that reads text and an IP-Adapter with its encoder, for the base of `write_models`."""
    case = cases.ParityCase("instantid", cases.DATA / "instantid")
    unet = UNet2DConditionModel(**case.config["unet"])
    put_network(shelf.folder / "edges", unet, case.with_salt("edges"))
    shelf.put("edges", shelf.folder / "edges", kind="controlnet", task="controlnet")
    put_network(shelf.folder / "edges15", unet, case.with_salt("edges"))
    shelf.put("edges15", shelf.folder / "edges15", kind="controlnet", task="controlnet", family="sd15")
    write_encoder(shelf.folder / "encoder")
    shelf.put("encoder", shelf.folder / "encoder", kind="image-encoder", task="", family="other", layout="folder")
    path = shelf.folder / "ip-adapter.safetensors"
    save_file(adapter("plus", unet), path)
    shelf.put("ip-adapter", path, kind="ip-adapter", task="ip-adapter", parts=("encoder",))


@pytest.fixture(scope="module")
def runtime(tmp_path_factory, one_thread):
    """The tiny identity models with what may stand beside them; what face models find is drawn."""
    shelf = Shelf(tmp_path_factory.mktemp("combining"))
    write_models(shelf)
    write_companions(shelf)
    runtime = open_runtime(shelf)
    source = torch.Generator().manual_seed(3)
    hidden = tuple(torch.randn(17, 1024, generator=source) for _ in range(5))
    pooled = torch.nn.functional.normalize(torch.randn(768, generator=source), dim=-1)
    arcface = torch.randn(512, generator=source)
    runtime.given = GivenFaces(arcface=arcface, clip_pooled=pooled, clip_hidden=hidden)
    yield runtime
    runtime.close()


PULID = PulidIdentity("pulid", faces=FACES, id_scale=1.0)
INSTANTID = InstantIdIdentity("instantid", faces=FACES)
ECOMID = EcomIdIdentity("ecomid", faces=FACES, id_scale=1.0)
EDGE_NET = ControlNet("edges", controlnet_conditioning_scale=0.7)
PROMPT = ImagePrompt("ip-adapter", images=(PICTURE,), scale=1.0)
DRAWINGS = {INSTANTID: DRAWING, ECOMID: DRAWING, EDGE_NET: EDGES}


def draw(runtime, attachments, seed=0, **more):
    """The picture as floats of 0 to 255; each network has its own control picture, wherever it stands."""
    control = [DRAWINGS.get(wish, EDGES) for wish in attachments if not isinstance(wish, PulidIdentity | ImagePrompt)]
    arguments = {"prompt": "a red car", "width": 64, "height": 64, "num_inference_steps": 4, "guidance_scale": 5.0}
    if control:
        arguments["control_image"] = control
    with runtime.borrow("base", task="text-to-image", scheduler="DDIM", attachments=attachments) as pipeline:
        answer = pipeline(**(arguments | more), output_type="np", generator=torch.Generator().manual_seed(seed))
    return answer.images[0] * 255


COMBINATIONS = {
    "pulid and picture prompt": (PULID, PROMPT),
    "pulid and controlnet": (PULID, EDGE_NET),
    "instantid and controlnet": (INSTANTID, EDGE_NET),
    "ecomid and controlnet": (ECOMID, EDGE_NET),
    "pulid, picture prompt and controlnet": (PULID, PROMPT, EDGE_NET),
}


@pytest.mark.parametrize("attachments", COMBINATIONS.values(), ids=COMBINATIONS)
def test_each_of_a_combination_acts_whatever_the_order_and_all_come_off_again(runtime, attachments):
    before, (weights, processors) = draw(runtime, ()), state_of(runtime)
    together = draw(runtime, attachments)
    turned = draw(runtime, attachments[::-1])
    assert np.abs(turned - together).max() < 0.05
    for left_out in attachments:
        without = draw(runtime, tuple(wish for wish in attachments if wish is not left_out))
        assert np.abs(without - together).max() > 1, type(left_out).__name__
    again, (weights_after, processors_after) = draw(runtime, ()), state_of(runtime)
    assert (again == before).all()
    assert all(torch.equal(weights[key], weights_after[key]) for key in weights.keys() | weights_after.keys())
    assert {name: id(one) for name, one in processors.items()} == {
        name: id(one) for name, one in processors_after.items()
    }


@pytest.mark.parametrize("face", [INSTANTID, ECOMID], ids=["instantid", "ecomid"])
def test_a_further_controlnet_with_no_weight_or_after_the_end_changes_nothing(runtime, face):
    """Its picture is its own: IdentityNet still follows the keypoints."""
    alone = draw(runtime, (face,))
    silent = ControlNet("edges", controlnet_conditioning_scale=0.0)
    # 4 steps: the last is at three quarters of the way, which is after this window.
    last = ControlNet("edges", 0.99, 1.0, controlnet_conditioning_scale=1.0)
    for net in (silent, last):
        assert np.abs(draw(runtime, (face, net)) - alone).max() < 0.05
    early = ControlNet("edges", 0.0, 0.3, controlnet_conditioning_scale=1.0)
    assert np.abs(draw(runtime, (face, early)) - alone).max() > 1


def test_a_controlnet_of_another_base_is_named_with_the_model(runtime):
    with pytest.raises(InvalidRequest, match="'edges15' was made for sd15; the model 'base' is sdxl"):
        draw(runtime, (PULID, ControlNet("edges15")))


@pytest.mark.parametrize(
    ("model", "scheduler", "factor"),
    [
        ("pulid", "DPM++ 2M Karras", 0.99767),
        ("pulid", "DPM++ 2M", 1.0),
        ("pulid-v1", "DPM++ 2M Karras", 1.0),
        (None, "DPM++ 2M Karras", 1.0),
    ],
)
def test_pulid_v1_1_begins_with_its_references_noise(runtime, model, scheduler, factor):
    attachments = () if model is None else (PulidIdentity(model, faces=FACES, id_scale=1.0),)
    with runtime.borrow("base", task="text-to-image", scheduler=scheduler, attachments=attachments) as pipeline:
        assert pipeline.stock.scheduler.init_noise_sigma == pytest.approx(factor, abs=1e-4)
