"""Pocket's ControlNet and InstructPix2Pix: measures that can tell, and training from nothing."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from PIL import ImageChops  # noqa: E402

from app.pocket import (  # noqa: E402
    archive,
    captions,
    check_control,
    check_edits,
    classifier,
    edits,
    measure,
    spec,
    train_control,
    train_edits,
    world,
)
from app.pocket.check import load  # noqa: E402
from app.pocket.checkpoints import rng_of  # noqa: E402


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
