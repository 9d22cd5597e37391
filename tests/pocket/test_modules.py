"""Pocket's ControlNet and InstructPix2Pix: measures that can tell, and training from nothing."""

import io
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from diffusers import ControlNetModel  # noqa: E402
from PIL import Image, ImageChops, ImageOps  # noqa: E402

from app.core.attachments import EcomIdIdentity, FaceReference, ImagePrompt, InstantIdIdentity, PulidIdentity  # noqa: E402
from app.core.jobs import JobStatus  # noqa: E402
from app.core.service import Service  # noqa: E402
from app.imaging import control_maps  # noqa: E402
from app.imaging.paste_changes import paste_changes  # noqa: E402
from app.models.library import ModelLibrary  # noqa: E402
from app.models.runtime import open_runtime  # noqa: E402
from app.pocket import (  # noqa: E402
    archive,
    captions,
    check_control,
    check_edits,
    check_identity,
    classifier,
    edits,
    measure,
    spec,
    train_control,
    train_edits,
    unet_lora,
    world,
)
from app.pocket.check import load  # noqa: E402
from app.pocket.checkpoints import rng_of  # noqa: E402
from tests.engine.conftest import options, until  # noqa: E402


def test_an_archive_is_made_once_and_goes_on_where_it_was_cut_off(tmp_path):
    asked = []

    def make(indices):
        asked.extend(indices)
        return {"square": np.array([index**2 for index in indices])}

    shapes = {"square": (np.int64, ())}
    archive.build(tmp_path, "some", shapes, 32, make, report=str)
    with open(tmp_path / "square-some.bin", "ab") as file:
        file.write(b"cut")
    found = archive.build(tmp_path, "some", shapes, 50, make, report=str)["square"]
    assert asked == list(range(64)) and found.tolist() == [index**2 for index in range(64)]


def test_edges_are_found_within_two_pixels_and_not_farther():
    wished = np.zeros((40, 40), bool)
    wished[20] = True
    assert check_control.edge_f1(wished, wished) == 1.0
    for shift, score in ((2, 1.0), (3, 0.0)):
        assert check_control.edge_f1(np.roll(wished, shift, 0), wished) == score
    half = wished | np.roll(wished, 10, 0)
    assert check_control.edge_f1(half, wished) == pytest.approx(2 / 3)
    assert check_control.edge_f1(np.zeros_like(wished), wished) == 0.0


def test_a_wish_changes_what_it_says_and_nothing_else():
    some = [edits.random_edit(rng_of("edits test", number)) for number in range(300)]
    assert {edit.kind for edit in some} == {*edits.OF_THINGS, *edits.OF_PORTRAITS}
    for edit in some[:60]:
        before, after = world.draw(edit.before), world.draw(edit.after)
        assert ImageChops.difference(before, after).getbbox(), edit
        if edit.kind in ("colour", "replace", "add", "remove") and len(edit.before.things) == 2:
            box = measure.regions_of(edit.before)[1 - edit.place]
            left, top, right, bottom = (round(128 * share) for share in box)
            other = ImageChops.difference(before, after).crop((left + 4, top + 4, right - 4, bottom - 4))
            assert np.asarray(other).any(-1).mean() < 0.12, edit


def test_the_renderers_own_pictures_fulfil_wishes_and_the_given_ones_do_not():
    some = [train_edits.edit_of("measure test", number) for number in range(80)]
    network = classifier.load(spec.WEIGHTS)
    after = [check_edits.is_fulfilled(edit, world.draw(edit.after), network) for edit in some]
    before = [check_edits.is_fulfilled(edit, world.draw(edit.before), network) for edit in some]
    assert np.mean(after) >= 0.9 and np.mean(before) <= 0.05
    differences = [check_edits.difference(edit, world.draw(edit.after)) for edit in some]
    assert max(value for value in differences if value is not None) == 0.0


def test_the_eight_channels_begin_as_the_unet_that_sees_no_picture():
    pipeline = load(spec.WEIGHTS)
    wider = train_edits.build_unet(pipeline.unet)
    noisy, seen = torch.randn(1, 4, 16, 16), torch.randn(1, 4, 16, 16)
    conditions = {"text_embeds": torch.randn(1, 160), "time_ids": torch.full((1, 6), 128.0)}
    told = {"timestep": 500, "encoder_hidden_states": torch.randn(1, 20, 256), "added_cond_kwargs": conditions}
    with torch.no_grad():
        plain = pipeline.unet.eval()(noisy, **told).sample
        assert torch.allclose(wider.eval()(torch.cat([noisy, seen], 1), **told).sample, plain, atol=1e-5)


@pytest.mark.parametrize("stage", [train_control, train_edits], ids=lambda stage: stage.NAME)
def test_a_stage_trains_from_nothing_goes_on_and_ends_in_a_file(tmp_path, stage):
    count = {train_control: "--scenes", train_edits: "--pairs"}[stage]
    command = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), count, "32", "--steps"]
    assert stage.main([*command, "1"]) == 0
    first = (tmp_path / "out" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert stage.main([*command, "2"]) == 0
    assert (tmp_path / "out" / "diffusion_pytorch_model.safetensors").read_bytes() != first
    assert torch.load(tmp_path / "work" / f"{stage.NAME}.pt", weights_only=True)["number"] == 2


def test_prompts_of_the_check_leave_the_layout_to_the_map():
    scenes = check_control.scenes_of("test", 60)
    for scene, prompt in zip(scenes, check_control.prompts_of(scenes, "test"), strict=True):
        said = captions.parse(prompt)
        assert (said.place, said.relation, [thing.size for thing in said.things if thing.size]) == (None, None, [])
        assert scene.person is None or said.person.pose is None


def test_the_shipped_controlnet_is_small_and_follows_its_maps():
    pipeline, network = load(spec.WEIGHTS), ControlNetModel.from_pretrained(train_control.FOLDER, dtype=torch.float32)
    scenes = check_control.scenes_of("shipped", 10)
    prompts, pictures = check_control.prompts_of(scenes, "shipped"), [world.draw(scene) for scene in scenes]
    wished = [check_control.edges_of(picture) for picture in pictures]

    def score(network, maps) -> float:
        drawn = map(check_control.edges_of, check_control.draw(pipeline, network, prompts, maps, "shipped"))
        return float(np.mean([check_control.edge_f1(one, other) for one, other in zip(drawn, wished, strict=True)]))

    without = score(None, [])
    for kind in train_control.KINDS:
        maps = [Image.fromarray(train_control.map_of(kind, picture)).convert("RGB") for picture in pictures]
        followed = score(network, maps)
        assert followed >= 0.7 and followed > without + 0.2, kind
    assert sum(path.stat().st_size for path in train_control.FOLDER.iterdir()) <= 15_000_000


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """The service with nothing installed: pocket and its own modules are what is chosen."""
    settings = {"catalog": "app.core.catalog:CATALOG", "devices": ("cpu",), "worker_lost_seconds": 60.0}
    service = Service(options(tmp_path_factory.mktemp("fresh"), **settings))
    service.start()
    until(lambda: service.readiness()["ready"], 120.0)
    yield service
    service.stop(0.0)


def sent(service, picture):
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return service.upload(buffer.getvalue()).id


def drawn(service, path, wish):
    """The first picture of a job."""
    job = service.submit(path, wish)
    until(lambda: service.get(job.id).status.is_terminal, 120.0)
    done = service.get(job.id)
    assert done.status is JobStatus.SUCCEEDED, done.error
    return service.storage.open(done.result["images"][0]["id"])


def test_a_fresh_machine_draws_after_edges(fresh):
    scene = check_control.scenes_of("fresh", 1)[0]
    given = world.draw(scene)
    wish = {"prompt": check_control.prompts_of([scene], "fresh")[0], "seed": 0, "control_type": ["canny"]}
    image = drawn(fresh, "controlnet/generate", wish | {"control_image": [sent(fresh, given)]})
    assert check_control.edge_f1(check_control.edges_of(image), check_control.edges_of(given)) >= 0.6


def test_a_fresh_machine_colours_a_line_drawing(fresh):
    given = world.draw(world.Scene("white", (world.Thing("car", "white"),)))
    lines = ImageOps.invert(control_maps.lineart(given))
    wish = {"prompt": "a red car, blue background", "seed": 0, "control_image": sent(fresh, lines)}
    image = drawn(fresh, "anime-controlnet", wish)
    assert check_control.edge_f1(check_control.edges_of(image), check_control.edges_of(given)) >= 0.6
    found = measure.find(image)
    assert (measure.background_colour(image), measure.colour_of(found)) == ("blue", "red")


def test_the_shipped_editor_is_small_and_does_what_it_is_told():
    some = [train_edits.edit_of("shipped", number) for number in range(20)]
    drawn, network = check_edits.draw(check_edits.pipeline_of(train_edits.FOLDER), some, "shipped"), classifier.load()
    fulfilled = [check_edits.is_fulfilled(edit, image, network) for edit, image in zip(some, drawn, strict=True)]
    given = [world.draw(edit.before) for edit in some]
    pasted = [paste_changes(before, image).image for before, image in zip(given, drawn, strict=True)]
    assert np.mean(fulfilled) >= 0.7 and check_edits.mean_difference(some, pasted) <= 3
    assert sum(path.stat().st_size for path in train_edits.FOLDER.iterdir()) <= 40_000_000


def test_what_comes_in_a_things_place_is_judged_by_what_it_is():
    """The wish says no colour for it, and the thing that stays has to keep its own."""
    wishes = (train_edits.edit_of("replaced", number) for number in range(99))
    edit = next(wish for wish in wishes if wish.kind == "replace" and len(wish.after.things) == 2)
    network, taken = classifier.load(), {edit.after.background, *(thing.colour for thing in edit.after.things)}
    free = next(name for name in world.COLOURS if name not in taken)

    def painted(number: int):
        things = [replace(thing, colour=free) if n == number else thing for n, thing in enumerate(edit.after.things)]
        return world.draw(replace(edit.after, things=tuple(things)))

    pictures = world.draw(edit.after), painted(edit.place), painted(1 - edit.place)
    assert [check_edits.is_fulfilled(edit, picture, network) for picture in pictures] == [True, True, False]
    assert [check_edits.keeps_colour(edit, picture) for picture in pictures[:2]] == [True, False]


def test_a_fresh_machine_makes_the_car_green(fresh):
    given = world.draw(world.Scene("white", (world.Thing("car", "red", "big"),)))
    wish = {"prompt": "make the car green", "image": sent(fresh, given), "seed": 1, "paste_changes": True}
    image = drawn(fresh, "instruct-pix2pix", wish)
    found, before = measure.find(image), measure.find(given)
    assert (measure.background_colour(image), measure.colour_of(found)) == ("white", "green")
    assert np.abs(np.subtract(found.box, before.box)).max() <= 6
    assert np.array_equal(np.asarray(image)[:8], np.asarray(given)[:8]), "what did not change keeps its bytes"


def test_a_fresh_machine_turns_the_head_left(fresh):
    scene = world.random_portrait(rng_of("turned"))
    given = world.draw(replace(scene, person=replace(scene.person, pose="front")))
    image = drawn(fresh, "instruct-pix2pix", {"prompt": "turn the head left", "image": sent(fresh, given), "seed": 1})
    assert [check_edits.pose_of(picture) for picture in (given, image)] == ["front", "left"]


def test_pulid_wears_its_lora_and_leaves_pocket_as_it_was(fresh):
    """The product draws what the measured pipeline draws, with the LoRA on; a plain picture after it is the same."""
    case = check_identity.case_of("fresh", 1)
    plain = {"prompt": case.prompt, "seed": 3}
    before = drawn(fresh, "text-to-image", plain)
    reference = sent(fresh, world.draw(case.reference).resize((512, 512)))
    face = drawn(fresh, "pulid/generate", plain | {"face_image": reference})
    after = drawn(fresh, "text-to-image", plain)
    assert np.array_equal(np.asarray(before), np.asarray(after))
    skins = [measure.skin_of(picture) for picture in (world.draw(case.reference), face)]
    assert skins[0] == skins[1]


def test_what_lets_pocket_follow_a_face_is_worn_with_every_identity_and_with_nothing_else(tmp_path):
    runtime = open_runtime(device="cpu", library=ModelLibrary(tmp_path), precision="float32")
    image = world.draw(check_identity.case_of("fresh", 1).reference).resize((512, 512))
    try:
        worn = {}
        faces = [FaceReference(image)]
        wishes = {
            "pocket-pulid": PulidIdentity("pocket-pulid", faces=faces),
            "pocket-instantid": InstantIdIdentity("pocket-instantid", faces=faces),
            "pocket-ecomid": EcomIdIdentity("pocket-ecomid", faces=faces),
            "pocket-ip-adapter": ImagePrompt("pocket-ip-adapter", images=[image]),
        }
        for row, wish in wishes.items():
            with runtime.borrow("pocket", task="text-to-image", attachments=[wish]) as pipeline, pipeline.working():
                worn[row] = len(next(iter(runtime._cache.models().values())).wardrobe.worn.places)
        layers = [part for part in pipeline.stock.unet.modules() if isinstance(part, unet_lora.LAYERS)]
        assert worn == dict.fromkeys(wishes, len(layers)) | {"pocket-ip-adapter": 0}
    finally:
        runtime.close()
