"""What teaches a face by its facts: pairs of pictures that differ in a few numbers, and an encoder that tells them."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from app.pocket import captions, people, spec, train_facts, train_pulid, world  # noqa: E402
from app.pocket.check import load  # noqa: E402
from app.pocket.checkpoints import rng_of  # noqa: E402
from app.pocket.encoding import to_tensor  # noqa: E402


class Sized(SimpleNamespace):
    def __len__(self):
        return len(self.scenes)


def some_people(count=64):
    scenes = [people.scene_of("facts test", index) for index in range(count)]
    geometry = torch.tensor([scene.geometry for scene in scenes])
    latents = torch.zeros(count, 4, 16, 16)
    latents.view(count, -1)[:, :14] = geometry
    looks = torch.tensor([people.looks_of(scene) for scene in scenes])
    return Sized(seed="facts test", scenes=scenes, geometry=geometry, latents=latents.numpy(), looks=looks)


def test_the_other_picture_differs_in_few_numbers_and_enough_to_be_seen():
    own = [people.scene_of("facts test", index).geometry for index in range(200)]
    other = [train_facts.other_geometry("facts test", index, numbers) for index, numbers in enumerate(own)]
    away = (torch.tensor(other) - torch.tensor(own)).abs()
    changed = (away > 0).sum(1)
    assert set(changed.tolist()) == {1, 2, 3, 14}
    assert away[away > 0].min() >= train_facts.FURTHER and torch.tensor(other).abs().max() <= 1
    assert (away > 0).sum(0).min() > 20  # every number is changed often
    assert other == [train_facts.other_geometry("facts test", index, numbers) for index, numbers in enumerate(own)]


def test_the_other_pictures_latents_differ_where_the_geometry_does(tmp_path):
    pipeline, some = load(spec.WEIGHTS), some_people(32)
    others = train_facts.build_others(tmp_path, some, pipeline.vae, report=str)
    assert others.shape == (32, 4, 16, 16)
    with torch.no_grad():
        own = pipeline.vae.encode(to_tensor([world.draw(scene) for scene in some.scenes])).latent_dist.mean.numpy()
    away = np.abs(others - own).max(1)
    assert (away.max((1, 2)) > 0.1).all()
    assert away[:, :1].mean() < 0.3 * away.mean()  # the background above the head is the same


def test_places_count_as_far_as_faces_differ_there(tmp_path):
    pipeline, some = load(spec.WEIGHTS), some_people(32)
    pictures = to_tensor([world.draw(scene) for scene in some.scenes])
    with torch.no_grad():
        some.latents = pipeline.vae.encode(pictures).latent_dist.mean.numpy()
    where = train_facts.where_faces_differ(some, train_facts.build_others(tmp_path, some, pipeline.vae, report=str))
    assert where.shape == (16, 16) and where.mean().item() == pytest.approx(1, abs=1e-3)
    eyes_to_mouth, corners = where[6:12, 5:11], torch.cat([where[:2, :2], where[:2, -2:]])
    assert eyes_to_mouth.mean() > 2 > 0.5 > corners.mean() >= train_facts.EVERYWHERE - 1e-3


def test_every_number_counts_the_same_however_much_it_changes():
    some = some_people(600)
    others = some.latents.copy()
    for index, scene in enumerate(some.scenes):
        other = train_facts.other_geometry(some.seed, index, scene.geometry)
        for number in (n for n in range(14) if other[n] != scene.geometry[n]):
            others[index, :, 1 + number // 7, 2 + number % 7] += 1 + number
    where = train_facts.where_faces_differ(some, others)
    changed = where[1:3, 2:9]
    assert torch.allclose(changed, changed[0, 0].expand(2, 7)) and changed[0, 0] > 10
    assert where[5:].max().item() == pytest.approx(train_facts.EVERYWHERE)


def test_too_few_portraits_to_see_where_faces_differ_are_refused():
    some = some_people(64)
    some.scenes = some.scenes[:0]
    with pytest.raises(ValueError, match="more portraits"):
        train_facts.where_faces_differ(some, some.latents)


def test_teaching_goes_on_where_it_stopped(tmp_path):
    pipeline, some = load(spec.WEIGHTS), some_people(32)
    others = train_facts.build_others(tmp_path / "others", some, pipeline.vae, report=str)
    arguments = ("v1.1", pipeline, some, others, tmp_path / "work", "s")
    assert train_facts.teach(*arguments, 2, report=str)[-1]
    assert torch.load(tmp_path / "work/facts-v1.1.pt", weights_only=True)["number"] == 2
    attachment, complete = train_facts.teach(*arguments, 3, report=str)[1:]
    assert complete and torch.load(tmp_path / "work/facts-v1.1.pt", weights_only=True)["number"] == 3
    fresh = train_pulid.Attachment(pipeline.unet)
    assert any(not torch.equal(one, other) for one, other in zip(fresh.keys, attachment.keys, strict=True))


def test_tokens_tell_faces_apart_and_nobody_is_always_the_same():
    some, tokens = some_people(), train_facts.FactTokens(8)
    everyone, nobody = (tokens(some.geometry, some.looks, torch.full((64,), known)) for known in (1.0, 0.0))
    assert everyone.shape == (64, 8, 256)
    assert everyone.var(0).mean() > 1e-2
    assert nobody.var(0).max() == 0


def test_captions_leave_the_looks_to_the_face_and_say_the_rest():
    rng = rng_of("facts captions")
    said = [(scene, train_facts.caption_of(scene, rng)) for scene in some_people().scenes]
    facts = [(scene, captions.parse(text)) for scene, text in said if text]
    assert 0.7 * 64 < len(facts) < 64
    assert all(found.background in (scene.background, None) for scene, found in facts)
    whole = [scene.person.expression == found.person.expression for scene, found in facts]
    assert 0.5 < sum(whole) / len(whole) < 0.95, "what a prompt leaves out is sometimes left out"
    for name in ("hair_style", "hair_colour", "eye_colour", "skin", "glasses"):
        assert all(getattr(found.person, name) is None for _, found in facts)


def test_an_encoder_learns_to_say_the_taught_tokens(tmp_path):
    torch.manual_seed(0)
    some, tokens = some_people(), train_facts.FactTokens(8).requires_grad_(False)
    vectors = torch.zeros(64, 1280)
    vectors[:, :14] = some.geometry * 4
    for column in range(some.looks.shape[1]):
        vectors[torch.arange(64), 20 + 10 * column + some.looks[:, column]] = 1

    class Features:
        indices = range(64)

        def of(self, indices):
            return vectors[indices], torch.zeros(len(indices), 5, 5, 64)

    losses = []
    for steps in (1, 60):
        torch.manual_seed(0)
        encoder = train_pulid.build_encoder("v1.1")
        say = partial(train_pulid.say, encoder)
        assert train_facts.tell("tell", encoder, say, tokens, some, Features(), tmp_path / str(steps), "s", steps)
        said = say(vectors, torch.zeros(64, 5, 5, 64))
        losses.append((said - tokens(some.geometry, some.looks, torch.ones(64))).square().mean().item())
    assert losses[1] < 0.5 * losses[0]


def test_what_tokens_say_of_a_face_can_be_read_back():
    torch.manual_seed(0)
    some, tokens = some_people(), train_facts.FactTokens(8)
    with torch.no_grad():
        said = tokens(some.geometry, some.looks, torch.ones(64))
        assert torch.allclose(tokens.reader()(said), some.geometry, atol=1e-3)
        assert tokens.reader()(tokens(some.geometry, some.looks, torch.zeros(64))).abs().max() < 1e-3
