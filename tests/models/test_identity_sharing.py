"""A face on one job's rows: neighbours in the same forwards keep their pictures, and afterwards nothing is left on."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from app.core.attachments import EcomIdIdentity, FaceReference, InstantIdIdentity, PulidIdentity
from app.errors import InvalidRequest
from app.models import instantid, pulid
from app.models.row_attention import cross_attentions
from tests.parity import cases
from tests.parity.full_size import sdxl_unet
from tests.parity.shelf import GivenFaces, Shelf, open_runtime, put_base, put_file, put_network

FACES = (FaceReference(Image.new("RGB", (64, 64))),)
DRAWING = Image.fromarray(np.random.default_rng(5).integers(0, 255, (64, 64, 3), np.uint8))


def write_models(shelf):
    """The parity cases' models on one base, as rows of the shelf: base, pulid, pulid-v1, instantid, ecomid."""
    pulid_case, instantid_case, ecomid_case = (
        cases.ParityCase(name, cases.DATA / name) for name in ("pulid", "instantid", "ecomid")
    )
    unet = put_base(shelf, instantid_case)
    identity = pulid_case.tensors(pulid_case.config["idformer_keys"])
    weights = {f"id_adapter.{key}": value for key, value in identity.items()}
    weights |= {key: 4 * value for key, value in pulid_case.tensors(pulid_case.config["adapter_keys"]).items()}
    put_file(shelf, "pulid", weights, task="pulid", head_dim=str(pulid_case.config["idformer"]["dim_head"]))
    folder = shelf.folder / "instantid"
    folder.mkdir()
    state = instantid_case.tensors(instantid_case.config["image_proj_keys"])
    state |= {key: 4 * value for key, value in instantid_case.tensors(instantid_case.config["ip_adapter_keys"]).items()}
    save_file(state, folder / instantid.ADAPTER)
    put_network(folder / instantid.NETWORK, unet, instantid_case)
    head_dim = str(instantid_case.config["resampler"]["dim_head"])
    shelf.put("instantid", folder, kind="identity", task="instantid", head_dim=head_dim)
    layers = {
        key.format(number): (module.inner_dim, unet.config.cross_attention_dim)
        for number, module in cross_attentions(unet).items()
        for key in (pulid.KEY, pulid.VALUE)
    }
    identity = ecomid_case.tensors(ecomid_case.config["id_encoder_keys"])
    put_file(shelf, "pulid-v1", identity | ecomid_case.tensors(layers), task="pulid")
    put_network(shelf.folder / "ecomid", unet, ecomid_case)
    for name, part in (("ecomid", "pulid-v1"), ("ecomid-of-v1.1", "pulid")):
        shelf.put(name, shelf.folder / "ecomid", kind="identity", task="ecomid", parts=(part, "instantid"))


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    """These models; what face models find is drawn."""
    shelf = Shelf(tmp_path_factory.mktemp("identity"))
    write_models(shelf)
    runtime = open_runtime(shelf)
    hidden = tuple(torch.randn(17, 1024, generator=torch.Generator().manual_seed(depth)) for depth in range(5))
    pooled = torch.nn.functional.normalize(torch.randn(768, generator=torch.Generator().manual_seed(8)), dim=-1)
    arcface = torch.randn(512, generator=torch.Generator().manual_seed(9))
    runtime.given = GivenFaces(arcface=arcface, clip_pooled=pooled, clip_hidden=hidden)
    yield runtime
    runtime.close()


def wishes(mode="ortho_v2"):
    return {
        "plain": (),
        "pulid": (PulidIdentity("pulid", faces=FACES, id_scale=1.0, ortho=mode),),
        "pulid off": (PulidIdentity("pulid", faces=FACES, id_scale=1.0, ortho="off", num_zero=0),),
        "instantid": (InstantIdIdentity("instantid", faces=FACES),),
        "ecomid": (EcomIdIdentity("ecomid", faces=FACES, id_scale=1.0),),
    }


def draw(runtime, attachments, seed=0, **more):
    arguments = {"prompt": "a red car", "width": 64, "height": 64, "num_inference_steps": 4, "guidance_scale": 5.0}
    has_control = any(not isinstance(wish, PulidIdentity) for wish in attachments)
    control = {"control_image": [DRAWING]} if has_control else {}
    with runtime.borrow("base", task="text-to-image", scheduler="DDIM", attachments=attachments) as pipeline:
        answer = pipeline(**(arguments | more), **control, generator=torch.Generator().manual_seed(seed))
    return np.asarray(answer.images[0]).astype(int)


def state_of(runtime):
    with runtime.borrow("base", task="text-to-image") as pipeline:
        unet = pipeline.stock.unet
        return {name: value.clone() for name, value in unet.state_dict().items()}, dict(unet.attn_processors)


@pytest.mark.parametrize("name", ["pulid", "pulid off", "instantid", "ecomid"])
def test_after_a_face_the_model_is_what_it_was_bit_for_bit(runtime, name):
    """State dict, processors and the next plain picture."""
    before, (weights, processors) = draw(runtime, ()), state_of(runtime)
    with_face = draw(runtime, wishes()[name])
    again, (weights_after, processors_after) = draw(runtime, ()), state_of(runtime)
    assert np.abs(with_face - before).max() > 8
    assert (again == before).all()
    assert weights.keys() == weights_after.keys()
    assert all(torch.equal(weights[key], weights_after[key]) for key in weights)
    assert {name: id(processor) for name, processor in processors.items()} == {
        name: id(processor) for name, processor in processors_after.items()
    }


@pytest.mark.parametrize("mode", ["off", "ortho", "ortho_v2"])
def test_no_negative_prompt_is_no_division_by_zero(runtime, mode):
    """SDXL's missing negative prompt is zeros, along which nothing lies: the latents stay numbers."""

    def check(pipeline, index, timestep, tensors):
        assert torch.isfinite(tensors["latents"]).all()
        return tensors

    draw(runtime, wishes(mode)["pulid"], callback_on_step_end=check)


def test_a_run_that_breaks_off_leaves_nothing_on(runtime):
    before = draw(runtime, ())

    def break_off(*arguments, **more):
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        draw(runtime, wishes()["instantid"], callback_on_step_end=break_off)
    _, processors = state_of(runtime)
    assert {type(processor).__name__ for processor in processors.values()} == {"AttnProcessor2_0"}
    assert (draw(runtime, ()) == before).all()


def test_jobs_with_and_without_faces_share_forwards_and_change_no_neighbour(runtime):
    """A PuLID job, one in another mode, an InstantID, an EcomID and a plain one at once: each is its solo picture."""
    kinds = wishes()
    alone = {name: draw(runtime, attachments, seed) for seed, (name, attachments) in enumerate(kinds.items())}
    found, errors = {}, []
    barrier = threading.Barrier(len(kinds))
    before = vars(runtime.batcher.counts).copy()

    def job(seed, name, attachments):
        try:
            barrier.wait()
            found[name] = draw(runtime, attachments, seed)
        except Exception as error:
            errors.append(error)

    threads = [
        threading.Thread(target=job, args=(seed, name, attachments))
        for seed, (name, attachments) in enumerate(kinds.items())
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for name, picture in alone.items():
        assert np.abs(found[name] - picture).max() <= 1, name
    counts = vars(runtime.batcher.counts)
    assert counts["largest"] >= 3
    assert counts["forwards"] - before["forwards"] < counts["calls"] - before["calls"]
    pairs = [(one, other) for one in alone for other in alone if one < other]
    assert all(np.abs(alone[one] - alone[other]).max() > 2 for one, other in pairs)


def test_pictures_of_one_call_have_the_face_each(runtime):
    """Two pictures in one call are the two that were drawn alone, with and without guidance."""
    attachments = wishes()["ecomid"]
    for guidance in (5.0, 1.0):
        with runtime.borrow("base", task="text-to-image", scheduler="DDIM", attachments=attachments) as pipeline:
            both = pipeline(
                prompt="a red car", width=64, height=64, num_inference_steps=3, guidance_scale=guidance,
                num_images_per_prompt=2, control_image=[DRAWING],
                generator=[torch.Generator().manual_seed(seed) for seed in (3, 4)],
            ).images  # fmt: skip
        for seed, picture in zip((3, 4), both, strict=True):
            alone = draw(runtime, attachments, seed, num_inference_steps=3, guidance_scale=guidance)
            assert np.abs(np.asarray(picture).astype(int) - alone).max() <= 1


def test_ecomid_refuses_pulid_of_the_other_version(runtime):
    with pytest.raises(InvalidRequest, match=r"PuLID v1; 'pulid' is PuLID v1\.1"):
        draw(runtime, (EcomIdIdentity("ecomid-of-v1.1", faces=FACES),))


def test_sdxl_counts_its_cross_attentions_down_up_mid():
    """140 processors; the odd ones look at the text, 10 of 640 channels and 60 of 1280, the mid block last."""
    unet = sdxl_unet()
    names = list(unet.attn_processors)
    assert len(names) == 140
    places = {
        range(0, 8): "down_blocks.1.attentions.", range(8, 48): "down_blocks.2.attentions.",
        range(48, 108): "up_blocks.0.attentions.", range(108, 120): "up_blocks.1.attentions.",
        range(120, 140): "mid_block.attentions.0.",
    }  # fmt: skip
    for numbers, prefix in places.items():
        assert all(names[number].startswith(prefix) for number in numbers)
    modules = cross_attentions(unet)
    assert list(modules) == list(range(1, 140, 2))
    assert all(names[number].endswith("attn2.processor") for number in modules)
    widths = [module.inner_dim for module in modules.values()]
    assert widths == [640] * 4 + [1280] * 20 + [1280] * 30 + [640] * 6 + [1280] * 10


def test_identity_networks_compute_in_the_checkpoints_number_format(runtime, monkeypatch):
    """A full-size checkpoint computes in bfloat16 on a processor that has it; what stands beside it does so too."""
    from app.models import device

    monkeypatch.setattr(device, "FULL_SIZE", 1)
    monkeypatch.setattr(device, "cpu_has_bfloat16", lambda: True)
    profiled = type(runtime)(
        device.TorchDevice("cpu", "auto"), runtime._library, model_memory_bytes=None, parked_memory_bytes=None
    )
    profiled.given = runtime.given
    with profiled.borrow("base", task="text-to-image", attachments=wishes()["ecomid"]) as pipeline:
        formats = {module.dtype for module in (pipeline.stock.unet, pipeline.stock.controlnet)}
    assert formats == {torch.bfloat16}
    picture = draw(profiled, wishes()["ecomid"])
    assert np.isfinite(picture).all() and picture.std() > 1
    profiled.close()
