"""What teaches a face by its facts: the judge is believed as far as it reads, an encoder learns the taught tokens."""

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from app.pocket import captions, people, train_facts  # noqa: E402
from app.pocket.checkpoints import rng_of  # noqa: E402


class ReadsTwo:
    """A judge whose latents hold the geometry: it gives back two numbers of it, the opposite of a third, no other."""

    def states(self, latents):
        return latents.flatten(1)[:, :14]

    def geometry(self, states):
        read = torch.zeros_like(states)
        read[:, :2] = states[:, :2]
        read[:, 2] = -states[:, 2]
        return read


def some_people(count=64):
    scenes = [people.scene_of("facts test", index) for index in range(count)]
    geometry = torch.tensor([scene.geometry for scene in scenes])
    latents = torch.zeros(count, 4, 16, 16)
    latents.view(count, -1)[:, :14] = geometry
    looks = torch.tensor([people.looks_of(scene) for scene in scenes])
    return SimpleNamespace(scenes=scenes, geometry=geometry, latents=latents.numpy(), looks=looks)


def test_the_judge_is_believed_in_what_it_reads_and_in_nothing_else():
    trust = train_facts.trust(ReadsTwo(), some_people())
    assert trust[:2].tolist() == pytest.approx([1, 1])
    assert trust[2] == 0
    assert trust[3:].max() < 0.1  # what is always read as the middle is as good as no reading


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
    assert all(found.background == scene.background for scene, found in facts)
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
        def of(self, kinds, indices):
            return vectors[indices], torch.zeros(len(indices), 5, 5, 64)

    class Sized(SimpleNamespace):
        def __len__(self):
            return len(self.scenes)

    losses = []
    sized = Sized(**vars(some))
    for steps in (1, 60):
        encoder, complete = train_facts.tell("v1.1", tokens, sized, Features(), tmp_path / str(steps), "s", steps)
        assert complete
        said = encoder(vectors, list(torch.zeros(64, 5, 5, 64).unbind(1)))
        losses.append((said - tokens(some.geometry, some.looks, torch.ones(64))).square().mean().item())
    assert losses[1] < 0.5 * losses[0]
