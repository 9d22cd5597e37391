"""A form says what the Request class says: every field has a widget, and what is read validates."""

from pathlib import Path
from typing import Annotated, Any

import gradio as gr
import pytest
from pydantic import Field

from app.core.capability import Capability, Request, Result
from app.core.catalog import CATALOG, find
from app.core.fields import ImageReference, InitImage, MaskImage, field
from app.errors import InvalidRequest
from app.models.library import ModelLibrary
from app.ui import forms
from app.ui.controls import FROM_THE_MODEL, LEFT_OUT
from app.ui.forms import PICTURES, Form, group_of, kinds, question_of
from app.ui.model_choices import ModelChoices, size_presets
from tests.api.test_models import lora_file
from tests.ui.capabilities import CATALOG as TEST_CATALOG

STYLE = (Path(forms.__file__).parent / "style.css").read_text("utf-8")
PICTURE = {"image": "0" * 26, "width": 64, "height": 64, "mask": "data:image/png;base64,AAAA"}


@pytest.fixture
def library(tmp_path):
    return ModelLibrary(tmp_path)


def form_of(capability: Capability, library: ModelLibrary) -> Form:
    with gr.Blocks():
        choices = ModelChoices(library, capability.needs, capability.additions, capability.optional_additions)
        form = Form(capability, choices)
        for group in ("words", "knobs", "advanced"):
            form.build(group)
    return form


def values_of(form: Form) -> list[Any]:
    """What the browser would send for an untouched form, with a picture in every picture input."""
    taking = set(form.pictures.values())
    datasets = {form.widget("images")} if form.widget("captions") else set()
    value = {True: {"pictures": [{**PICTURE, "caption": ""}]}, False: PICTURE}
    return [value[widget in datasets] if widget in taking | datasets else widget.value for widget in form.widgets]


@pytest.mark.parametrize("capability", CATALOG, ids=lambda capability: capability.name)
def test_every_field_has_a_widget_and_the_untouched_form_validates(capability, library):
    form = form_of(capability, library)
    covered = {name for control in form.controls for name in control.fields}
    assert covered == set(capability.request.model_fields)
    assert len(form.widgets) == len(form.show({})) == len(form.refresh("auto"))

    assert not [widget.value for widget in form.widgets if "Undefined" in str(widget.value)], "a box without a default"
    values = values_of(form)
    typed = {"prompt", "query", "name"}
    payload = form.read(values) | {name: value for name, value in capability.example.items() if name in typed}
    for name, kind in kinds(capability.request).items():
        if kind == "mask":
            payload[name] = "0" * 26
    for side in ("left", "right"):
        if side in capability.request.model_fields:
            payload[side] = 64
    request = capability.request.model_validate(payload)
    by_kind = kinds(capability.request)
    for name, info in capability.request.model_fields.items():
        if not info.is_required() and name not in {"left", "right"} and by_kind[name] not in PICTURES:
            assert getattr(request, name) == info.default, name


@pytest.mark.parametrize("capability", TEST_CATALOG, ids=lambda capability: capability.name)
def test_other_catalogs_build_too(capability, library):
    form = form_of(capability, library)
    assert {name for control in form.controls for name in control.fields} == set(capability.request.model_fields)


@pytest.mark.parametrize("capability", CATALOG, ids=lambda capability: capability.name)
def test_labels_are_words_and_no_two_of_a_form_are_the_same(capability):
    labels = [question_of(capability.request, name, None).label for name in capability.request.model_fields]
    assert len(set(labels)) == len(labels)
    foreign = {"id", "ip", "num", "ortho", "index", "inline", "x", "y"}
    assert [one for one in labels if foreign & set(one.lower().split())] == []


def test_a_field_that_means_another_thing_here_has_its_own_label():
    names = {
        name: question_of(find(name).request, "ip_adapter_scale", None).label
        for name in ("instantid/generate", "ip-adapter")
    }
    assert names == {"instantid/generate": "Strength of the face", "ip-adapter": "Strength of the picture"}


def test_every_field_that_says_nothing_without_another_is_hidden_by_the_page():
    others = {
        (name, question.only_with)
        for capability in CATALOG
        for name in capability.request.model_fields
        if (question := question_of(capability.request, name, None)).only_with
    }
    assert {other for _, other in others} == {"class_prompt", "paste_changes"}
    for _, other in others:
        assert f".eis-field-{other}" in STYLE and f".eis-with-{other}" in STYLE


@pytest.mark.parametrize(
    ("name", "fields"), [("step1x-edit", {"thinking", "reflection"}), ("pulid/generate", {"id_scale"})]
)
def test_what_a_capability_is_for_stands_in_sight(name, fields):
    wish = find(name).request
    found = {field for field, kind in kinds(wish).items() if group_of(question_of(wish, field, None), kind) == "knobs"}
    assert fields <= found


def test_guidance_of_a_kind_of_its_own_is_automatic_where_it_is_empty():
    wish = find("qwen-edit").request
    assert FROM_THE_MODEL in question_of(wish, "true_cfg_scale", None).empty_means


def test_a_shown_request_is_read_back(library):
    form = form_of(CATALOG[0], library)
    wish = {
        "prompt": "a red car",
        "negative_prompt": "blur",
        "model": "sdxl",
        "loras": [{"model": "lcm-lora-sdxl", "weight": 0.8}],
        "textual_inversions": [],
        "scheduler": "Euler a",
        "num_inference_steps": 12,
        "guidance_scale": 4.5,
        "clip_skip": 2,
        "num_images_per_prompt": 3,
        "seed": 4294967295,
        "vae_tiling": True,
        "width": 96,
        "height": 128,
        "second_pass_scale": 1.5,
        "second_pass_strength": 0.4,
        "second_pass_steps": 7,
    }
    shown = [update.get("value", widget.value) for update, widget in zip(form.show(wish), form.widgets, strict=True)]
    assert form.read(shown) == wish


def test_an_empty_negative_prompt_is_none_and_not_an_empty_text(library):
    form = form_of(CATALOG[0], library)
    typed = values_of(form)
    at = form.widgets.index(form.widget("negative_prompt"))
    for text, expected in (("", None), (None, None), ("blur", "blur")):
        typed[at] = text
        assert form.read(typed)["negative_prompt"] == expected
    shown = form.settled({"prompt": "x", "negative_prompt": None})
    assert shown[at]["value"] == "", "settings without one empty the box"


def test_an_empty_strength_of_inpaint_is_none_and_stays_in_sight(library):
    inpaint = next(capability for capability in CATALOG if capability.name == "inpaint")
    form = form_of(inpaint, library)
    box = form.widget("strength")
    assert box.placeholder == "0.99" and "strength" not in {
        question.name for group, question, _ in form._pending if group == "advanced"
    }
    typed = values_of(form)
    assert form.read(typed)["strength"] is None
    typed[form.widgets.index(box)] = "0.5"
    assert form.read(typed)["strength"] == 0.5


def test_empty_boxes_say_what_empty_means(library, tmp_path):
    form = form_of(CATALOG[0], library)
    assert form.widget("num_inference_steps").placeholder.startswith("auto (")
    at = form.widgets.index(form.widget("num_inference_steps"))
    assert form.refresh("sdxl")[at]["placeholder"] == "auto (30)"
    assert form.widget("clip_skip").placeholder == "none"
    scheduler = form.widgets.index(form.widget("scheduler"))
    assert form.refresh("sdxl")[scheduler]["choices"][0] == ("auto (DPM++ 2M Karras)", "")
    inpaint = form_of(next(one for one in CATALOG if one.name == "inpaint"), library)
    assert inpaint.widget("padding_mask_crop").placeholder == "the whole picture"


def test_a_pull_elsewhere_leaves_the_chosen_model_and_its_hints(library):
    form = form_of(CATALOG[0], library)
    model, steps = (form.widgets.index(form.widget(name)) for name in ("model", "num_inference_steps"))
    updates = form.after_models_changed("sdxl", gone=())
    assert updates[steps]["placeholder"] == "auto (30)" and "value" not in updates[model]


def test_a_model_that_has_gone_gives_way_to_auto_and_the_form_says_so(library):
    form = form_of(CATALOG[0], library)
    model, steps = (form.widgets.index(form.widget(name)) for name in ("model", "num_inference_steps"))
    of_auto = form.refresh("auto")[steps]["placeholder"]
    for updates in (
        form.after_models_changed("sdxl", gone={"sdxl"}),
        form.after_models_changed("my-own-file", gone=()),
        form.settled({"prompt": "x", "model": "my-own-file"}),
    ):
        assert updates[model]["value"] == "auto" and "auto" in {id for _, id in updates[model]["choices"]}
        assert "is not installed here; auto stands in its place" in updates[model + 1]["value"]
        assert updates[steps]["placeholder"] == of_auto


def test_settings_bring_the_hints_of_their_model(library):
    form = form_of(CATALOG[0], library)
    updates = form.settled({"prompt": "x", "model": "sdxl", "num_inference_steps": None})
    assert updates[form.widgets.index(form.widget("model"))]["value"] == "sdxl"
    steps = updates[form.widgets.index(form.widget("num_inference_steps"))]
    assert steps["value"] == "" and steps["placeholder"] == "auto (30)"


def test_loras_are_offered_to_models_of_their_family(library, tmp_path):
    file = tmp_path / "large style.safetensors"
    file.write_bytes(lora_file())
    library.add(file)
    form = form_of(CATALOG[0], library)
    at = form.widgets.index(form.widget("loras"))

    def offered(updates):
        return [option["id"] for option in updates[at]["value"]["options"]]

    assert offered(form.refresh("sdxl")) == ["large-style"] and offered(form.refresh("sd15")) == []
    wish = {"prompt": "x", "model": "sd15", "loras": [{"model": "large-style", "weight": 0.5}]}
    assert offered(form.settled(wish)) == []
    assert offered(form.settled({**wish, "model": "sdxl"})) == ["large-style"]


def test_of_a_wish_from_anywhere_only_what_the_form_takes_is_shown(library):
    form = form_of(next(one for one in CATALOG if one.name == "inpaint"), library)
    wild = {
        "prompt": "a cat",
        "scheduler": "Restart",
        "num_inference_steps": 20,
        "guidance_scale": "nan",
        "seed": -1,
        "loras": 7,
        "textual_inversions": [[]],
        "model": "v1-5-pruned",
        "image": "../../etc/passwd",
        "mask_image": {"a": 1},
        "width": 512,
        "sampler": None,
    }
    assert form.sensible(wild) == {"prompt": "a cat", "num_inference_steps": 20, "model": "v1-5-pruned"}
    assert len(form.settled(form.sensible(wild))) == len(form.widgets)


def test_what_is_no_number_is_refused_by_name(library):
    form = form_of(CATALOG[0], library)
    values = values_of(form)
    values[form.widgets.index(form.widget("num_inference_steps"))] = "twelve"
    with pytest.raises(InvalidRequest, match="Steps: 'twelve' is not a whole number"):
        form.read(values)


def test_a_missing_picture_or_mask_is_told_in_words(library):
    form = form_of(next(one for one in CATALOG if one.name == "inpaint"), library)
    values = values_of(form)
    at = form.widgets.index(form.pictures["image"])
    values[at] = None
    with pytest.raises(InvalidRequest, match="choose a picture first"):
        form.read(values)
    values[at] = {**PICTURE, "mask": None}
    with pytest.raises(InvalidRequest, match="paint the part to make anew"):
        form.read(values)


def test_not_installed_models_are_listed_with_their_pull_line(library):
    choices = ModelChoices(library, ("text-to-image",))
    entries = choices.entries()
    assert entries[0][1] == "auto"
    assert ("Stable Diffusion XL 1.0 · not installed", "sdxl") in entries
    assert "sdxl-inpainting" not in {entry[1] for entry in entries}
    assert "eis models pull sdxl" in choices.missing_note("sdxl")
    assert choices.missing_note("no-such-model")


def test_presets_have_about_the_models_own_area(library):
    recommended = ModelChoices(library, ("text-to-image",)).recommended("sdxl")
    presets = [tuple(map(int, value.split("x"))) for _, value in size_presets(recommended) if value]
    assert (1024, 1024) in presets and len(presets) == 5
    for width, height in presets:
        assert width % 64 == height % 64 == 0
        assert 0.9 < width * height / 1024**2 < 1.1


def test_a_field_that_no_widget_serves_is_a_mistake(library):
    class Odd(Request):
        """A request with a field of a type that the table does not know."""

        odd: Annotated[dict[str, int], Field(description="A mapping.")]

    def run(request: Odd, context: Any) -> Result:
        return Result()

    with pytest.raises(TypeError, match="odd"):
        form_of(Capability("odd", "Odd", "Odd.", Odd, run), library)


def test_an_optional_mask_may_stay_unpainted(library):
    class Wish(Request):
        """A picture and perhaps a mask."""

        image: InitImage
        mask_image: MaskImage | None = None

    form = form_of(Capability("wish", "Wish", "Wish.", Wish, lambda request, context: Result()), library)
    assert form.read([{**PICTURE, "mask": None}]) == {"image": "0" * 26}
    assert form.read([PICTURE])["mask_image"].startswith("data:")


def test_several_pictures_are_read_in_order_without_the_empty_ones(library):
    class Wish(Request):
        """A few pictures."""

        pictures: Annotated[tuple[ImageReference, ...], field("Some pictures.", kind="images", max_length=3)]

    form = form_of(Capability("wish", "Wish", "Wish.", Wish, lambda request, context: Result()), library)
    assert len(form.widgets) == 3
    payload = form.read([{"image": "a" * 26}, None, {"image": "b" * 26}])
    assert Wish.model_validate(payload).pictures == ("a" * 26, "b" * 26)
    with pytest.raises(InvalidRequest, match="choose a picture first"):
        form.read([None, None, None])


def test_left_out_is_not_a_value():
    assert LEFT_OUT not in (None, "", 0)


def test_a_list_of_texts_has_a_line_for_each(library):
    form = form_of(next(one for one in CATALOG if one.name == "instruct-pix2pix"), library)
    control = next(control for control in form.controls if control.fields == ("instructions",))
    assert control.read("make it winter\n\nadd glasses\n") == {"instructions": ["make it winter", "add glasses"]}
    assert control.show({"instructions": ["winter", "glasses"]})[0]["value"] == "winter\nglasses"


def test_a_dataset_reads_its_captions_and_shows_a_jobs_pictures_again(library):
    form = form_of(find("lora-training"), library)
    control = next(control for control in form.controls if "captions" in control.fields)
    said = (("a", ""), ("b", "a cat"))
    rows = [{"image": letter * 26, "name": "a.png", "caption": caption} for letter, caption in said]
    read = control.read({"pictures": rows})
    assert read == {"images": ["a" * 26, "b" * 26], "captions": ["", "a cat"]}
    shown = control.show(read)[0]["value"]["pictures"]
    assert [(row["image"], row["caption"]) for row in shown] == [("a" * 26, ""), ("b" * 26, "a cat")]
    assert control.read({"pictures": rows[:1]}) == {"images": ["a" * 26]}
    with pytest.raises(InvalidRequest):
        control.read({"pictures": []})
