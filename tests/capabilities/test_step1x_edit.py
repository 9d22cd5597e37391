"""Step1X-Edit from the request to the picture, with a whole model of random weights: over HTTP, and step by step."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from app.core.jobs import JobStatus
from app.errors import JobCancelled
from app.models.runtime import open_runtime
from app.models.step1x_editing import Draw, guide, working_size
from app.models.step1x_text import V1_0, V1_1, V1_2, tokens_of
from tests.api.serving import serving
from tests.models import tiny_step1x
from tests.parity.cases import DATA

MODEL = "tiny-step1x"
PHOTO = Image.effect_mandelbrot((160, 128), (-2, -1.2, 0.8, 1.2), 60).convert("RGB")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A diffusers folder of v1.2."""
    case = json.loads((DATA / "step1x_edit" / "case.json").read_text("utf-8"))
    return tiny_step1x.make_folder(
        tmp_path_factory.mktemp("published") / MODEL, case["keys"], case["config"], version="1.2"
    )


@pytest.fixture(scope="module")
def server(folder, one_thread, tmp_path_factory):
    engine = {"runtime": "app.models.runtime:open_runtime"}
    with serving(tmp_path_factory.mktemp("home"), engine=engine, precision="float32") as running:
        running.service.models.add(folder, id=MODEL)
        yield running


@pytest.fixture(scope="module")
def loras(server, tmp_path_factory):
    """Two LoRAs, of FLUX's layout and of SDXL's, in the server's library; answers their ids."""
    folder, noise = tmp_path_factory.mktemp("loras"), torch.Generator().manual_seed(8)
    names = {
        "flux-style": "transformer.single_transformer_blocks.1.attn.to_v",
        "sdxl-style": "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
    }
    for id, name in names.items():
        wide = 64 if id == "flux-style" else 2048
        state = {f"{name}.lora_A.weight": (4, wide), f"{name}.lora_B.weight": (64, 4)}
        save_file(
            {key: torch.randn(shape, generator=noise) for key, shape in state.items()}, folder / f"{id}.safetensors"
        )
        server.service.models.add(folder / f"{id}.safetensors")
    return tuple(names)


@pytest.fixture(scope="module")
def runtime(server):
    opened = open_runtime(device="cpu", library=server.service.models, precision="float32")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def photo(server):
    buffer = io.BytesIO()
    PHOTO.save(buffer, "PNG")
    return server.upload(buffer.getvalue())


def wish(photo, **more):
    common = {"prompt": 'write "HI" on it', "image": photo, "num_inference_steps": 2, "size_level": 256, "seed": 3}
    return {**common, **more}


def made(server, answer):
    assert answer.status_code == 200, answer.text
    job = answer.json()
    assert job["status"] == "succeeded", job["error"]
    [picture] = job["result"]["images"]
    return job, Image.open(io.BytesIO(server.client.get(picture["url"]).content), formats=["PNG"])


def ask(server, **wishes):
    return made(server, server.client.post("/api/v1/step1x-edit?wait=500", json=wishes, timeout=520))


def test_the_folder_is_recognised_and_auto_means_it(server, photo):
    row = server.service.models.get(MODEL)
    assert row.spec.tasks == ("step1x-edit",) and row.spec.loader == "app.models.step1x:load"
    job, image = ask(server, **wish(photo))
    assert job["model"] == MODEL and job["request"]["guidance_scale"] == 6.0
    assert image.size == PHOTO.size
    facts = job["result"]["data"]
    assert facts["stages"] == [] and set(facts["alignment"]) == {"before", "after", "moved"}


def test_a_seed_repeats_the_picture_and_the_words_and_guidance_count(server, photo):
    _, first = ask(server, **wish(photo, model=MODEL, align=False))
    _, again = ask(server, **wish(photo, model=MODEL, align=False))
    _, other_words = ask(server, **wish(photo, model=MODEL, align=False, prompt="make it blue"))
    _, unguided = ask(server, **wish(photo, model=MODEL, align=False, guidance_scale=1.0))
    assert first.tobytes() == again.tobytes()
    assert len({picture.tobytes() for picture in (first, other_words, unguided)}) == 3


def test_a_lora_acts_by_its_weight_and_stays_for_nobody_else(server, photo, loras):
    def with_weight(*weights):
        put_on = [{"model": loras[0], "weight": weight} for weight in weights]
        return ask(server, **wish(photo, model=MODEL, align=False, loras=put_on))[1].tobytes()

    bare, whole = with_weight(), with_weight(1.0)
    assert whole != bare and with_weight(0.5) not in {bare, whole}
    assert with_weight(0.0) == bare == with_weight()


def test_a_lora_of_another_base_is_refused_with_both_names(server, photo, loras):
    before = server.stored()
    flux, sdxl = loras
    asked = {
        "step1x-edit": wish(photo, model=MODEL, loras=[{"model": sdxl}]),
        "text-to-image": {"prompt": "a cat", "model": "pocket", "loras": [{"model": flux}]},
    }
    for capability, told in asked.items():
        answer = server.client.post(f"/api/v1/{capability}", json=told)
        message = answer.json()["error"]["message"]
        assert answer.status_code == 422 and "was made for" in message, answer.text
        assert "flux" in message and "sdxl" in message and told["model"] in message
    assert server.stored() == before


def test_the_capability_adds_nothing_to_what_the_editor_makes(server, photo, runtime):
    _, image = ask(server, **wish(photo, model=MODEL, align=False))
    with runtime.editor(MODEL, task="step1x-edit") as editor:
        edited = editor(
            prompt='write "HI" on it',
            image=PHOTO,
            num_inference_steps=2,
            guidance_scale=6.0,
            size_level=256,
            generator=runtime.generators(3, 1)[0],
        ).images[0]
    assert edited.size == working_size(PHOTO.size, 256) == (272, 224)
    assert edited.resize(PHOTO.size, Image.Resampling.LANCZOS).tobytes() == image.tobytes()


def test_stages_are_told_as_they_happen_and_stand_in_the_result(server, photo):
    """A model of noise answers nothing that can be read: each stage is skipped after three asks, and the run ends."""
    # Submitted at the service's own door: an HTTP answer waits for a while, and events are to be met as they come.
    submitted = server.service.submit(
        "step1x-edit", wish(photo, model=MODEL, thinking=True, reflection=True, max_tries=2)
    )
    told = []
    for event in server.service.watch_blocking(submitted.id):
        if event.kind == "stages":
            told.append([stage["stage"] for stage in event.data["stages"]])
    job = server.client.get(f"/api/v1/jobs/{submitted.id}").json()
    assert job["status"] == "succeeded", job["error"]
    stages = job["result"]["data"]["stages"]
    names = [stage["stage"] for stage in stages]
    assert names == [
        "rewritten-instruction", "edit", "description", "judgement", "verdict", "rating-of-the-edit",
        "rating-of-the-picture",
    ]  # fmt: skip
    assert told and told[-1] == names and all(names[: len(one)] == one for one in told)
    assert len({len(one) for one in told}) >= 3, "they came one after the other"
    skipped = {stage["stage"] for stage in stages if stage.get("skipped")}
    assert {"judgement", "verdict", "rating-of-the-edit", "rating-of-the-picture"} <= skipped
    assert sum("was skipped" in note for note in job["result"]["notes"]) == len(skipped)
    assert job["result"]["data"]["tries"] == 1


def test_a_cancelled_reflection_ends_within_a_step_and_its_stages_stay_readable(server, photo):
    service = server.service
    job = service.submit("step1x-edit", wish(photo, model=MODEL, reflection=True, num_inference_steps=60))
    steps, asked = [], False
    for event in service.watch_blocking(job.id):
        if event.kind == "step":
            steps.append(event.data["step"])
            if not asked:
                service.cancel(job.id)
                asked = True
    ended = service.get(job.id)
    assert ended.status is JobStatus.CANCELLED and len(steps) <= 2
    answer = server.client.get(f"/api/v1/jobs/{job.id}").json()
    assert answer["result"]["images"] == []
    assert [stage["stage"] for stage in answer["result"]["data"]["stages"]] == ["edit"]
    assert service.retry(job.id).result is None
    service.cancel(job.id)


def test_an_answer_ends_within_one_token(runtime):
    count = 0

    def check():
        nonlocal count
        count += 1
        if count > limit:
            raise JobCancelled

    # Turns ask as well: first how often, without an end.
    limit = 10**9
    with runtime.editor(MODEL, task="step1x-edit", check=check) as editor:
        text = editor.say("Say something long.", [PHOTO], system="x", generator=runtime.generators(1, 1)[0])
        tokens = count - 1
        assert tokens >= 2, text
        encoder, forwards = editor._opened.text_encoder, []
        handle = encoder.register_forward_pre_hook(lambda *told: forwards.append(1))
        count, limit = 0, 2
        try:
            with pytest.raises(JobCancelled):
                editor.say("Say something long.", [PHOTO], system="x", generator=runtime.generators(1, 1)[0])
        finally:
            handle.remove()
    assert len(forwards) == 2, "the second token's forward was the last"


def test_drawing_keeps_to_the_likely_tokens():
    scores = torch.tensor([[5.0, 4.9, -20.0, -20.0]])
    draw = Draw(torch.Generator().manual_seed(0), lambda: None)
    drawn = {int(draw(None, scores).argmax()) for _ in range(40)}
    assert drawn == {0, 1}


def test_guidance_is_made_even_only_where_the_version_says():
    wished, unwished = torch.full((1, 2, 4), 3.0), torch.zeros(1, 2, 4)
    wished[:, 1] = 0.1
    plain = unwished + 6 * (wished - unwished)
    assert torch.equal(guide(wished, unwished, 6, V1_0, 0.99), plain)
    assert torch.equal(guide(wished, unwished, 6, V1_1, 0.9), plain)
    evened = guide(wished, unwished, 6, V1_1, 0.95)
    assert torch.allclose(evened[:, 0], plain[:, 0] / 6**0.4) and torch.equal(evened[:, 1], plain[:, 1])
    assert torch.equal(guide(wished, unwished, 6, V1_2, 0.01), evened)


@pytest.mark.parametrize("version", [V1_1, V1_2], ids=["1.1", "1.2"])
def test_letters_in_quotes_are_tokens_of_their_own(folder, version):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "processor", local_files_only=True)
    ids, flags = tokens_of(version, 'write "given" now', tokenizer, 5)
    assert ids.count(tokenizer.convert_tokens_to_ids("<|image_pad|>")) == 5
    quoted = [tokenizer.decode([id]) for id, flag in zip(ids, flags, strict=True) if flag]
    assert quoted == (list("given") if version is V1_2 else [])
    whole = tokenizer.decode(ids)
    assert 'write "given" now' in whole and "“" not in whole
    plain, _ = tokens_of(version, "write given now", tokenizer, 5)
    assert len(ids) > len(plain)


@pytest.mark.parametrize(
    ("change", "word"),
    [({"prompt": "  "}, "empty"), ({"size_level": 100}, "size_level"), ({"max_tries": 9}, "max_tries"),
     ({"image": "a" * 26}, "no picture")],
)  # fmt: skip
def test_bad_wishes_are_refused_at_the_door(server, photo, change, word):
    before = server.stored()
    answer = server.client.post("/api/v1/step1x-edit", json=wish(photo, model=MODEL) | change)
    assert answer.status_code in {404, 422} and word in answer.json()["error"]["message"]
    assert server.stored() == before


def test_pasting_keeps_the_bytes_of_what_did_not_change(server, photo):
    """A model of noise changes everything, which is said, and nothing is laid askew."""
    job, image = ask(server, **wish(photo, model=MODEL, paste_changes=True))
    facts = job["result"]["data"]
    assert facts["changed_share"] > 0.5 or np.array_equal(np.asarray(image), np.asarray(PHOTO))
    assert facts["alignment"]["moved"] is False
