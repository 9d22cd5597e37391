"""Prompts against embeddings computed by hand, and against the stock pipelines where those can say the same."""

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from app.errors import InvalidRequest
from app.models.adapters import Addition
from app.models.device import TorchDevice
from app.models.pipelines import load
from app.models.prompts import CHUNK, Encoder, Fragment, encode_text, parse, split_into_chunks
from app.models.runtime import build_prompt_encoder
from app.models.single_files import clip_tokenizer
from tests.models.dressed import textual_inversions

FAMILIES = ("sd15", "sdxl")
SENTENCE = "a photo of a red car by the old house at night"  # 11 tokens of the tiny vocabulary


def said(prompt):
    return [(fragment.text, pytest.approx(fragment.weight)) for fragment in parse(prompt)]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("normal text", [("normal text", 1.0)]),
        ("", [("", 1.0)]),
        ("a (word)", [("a ", 1.0), ("word", 1.1)]),
        ("a (word:1.3) b", [("a ", 1.0), ("word", 1.3), (" b", 1.0)]),
        ("a ((word))", [("a ", 1.0), ("word", 1.21)]),
        ("[word]", [("word", 1 / 1.1)]),
        ("[[word]]", [("word", 1 / 1.21)]),
        ("(a (b:2) c:0.5)", [("a ", 0.5), ("b", 1.0), (" c", 0.5)]),
        ("(a [b] c)", [("a ", 1.1), ("b", 1.0), (" c", 1.1)]),
        (r"a \(literal\) \[too\] \\", [("a (literal) [too] \\", 1.0)]),
        ("(never closed", [("never closed", 1.1)]),
        ("[never closed", [("never closed", 1 / 1.1)]),
        ("never opened) ]", [("never opened) ]", 1.0)]),
        ("time 10:30", [("time 10:30", 1.0)]),
        ("(time:noon)", [("time:noon", 1.1)]),
        ("(a:-0.5)", [("a", -0.5)]),
        ("(a: 1.5 )", [("a", 1.5)]),
        ("(a:.5)", [("a", 0.5)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("a:1.2)", [("a:1.2)", 1.0)]),
        ("(x:1)(y:1)", [("xy", 1.0)]),
        ("one BREAK two", [("one", 1.0), (None, 1.0), ("two", 1.0)]),
        ("unBREAKable", [("unBREAKable", 1.0)]),
    ],
)
def test_the_syntax_is_a1111s(prompt, expected):
    assert said(prompt) == expected


@pytest.mark.parametrize("prompt", ["(" * 200 + "x", "(x:101)", "(x:-1000)", "((x:90):90)"])
def test_absurd_weights_are_refused(prompt):
    with pytest.raises(InvalidRequest, match="weight"):
        parse(prompt)


def test_ten_thousand_brackets_are_read_in_a_moment():
    with pytest.raises(InvalidRequest):
        parse("(" * 9_999 + "x")
    deep = parse("[x" * 3_000 + "]" * 3_000)
    assert "".join(fragment.text for fragment in deep) == "x" * 3_000
    assert deep[0].weight == pytest.approx(1 / 1.1)
    assert len(parse("[" * 5_000 + "x" + "]" * 5_000)) == 1


@pytest.fixture(scope="module", params=FAMILIES)
def opened(request, library, sources):
    row = library.require(f"tiny-{request.param}")
    plain = {"sd15": diffusers.StableDiffusionPipeline, "sdxl": diffusers.StableDiffusionXLPipeline}[request.param]
    return load(row.spec, row.path, TorchDevice("cpu")), plain.from_pretrained(sources / f"tiny-{request.param}")


@pytest.fixture
def checkpoint(opened):
    return opened[0]


def ours(checkpoint, prompt, negative="", *, clip_skip=None, vectors=({}, {})):
    encoder = build_prompt_encoder(checkpoint, vectors)
    negatives = None if negative is None else [negative]
    return encoder.arguments([prompt], negatives, guided=True, clip_skip=clip_skip)


def stock(pipeline, prompt, negative="", **more):
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    arguments = {"num_images_per_prompt": 1, "do_classifier_free_guidance": True, "device": "cpu"}
    with torch.no_grad():
        answer = pipeline.encode_prompt(prompt, negative_prompt=negative, **arguments, **more)
    return dict(zip(names, answer, strict=False))


def words(count):
    return " ".join((SENTENCE.split() * 20)[:count])


@pytest.mark.parametrize("prompt", ["", "a red car", "Ein Würfel, 日本 🙂", words(74), words(75)])
@pytest.mark.parametrize("negative", ["", "blurry, dark", None])
def test_without_weights_it_is_the_stock_embedding_bit_for_bit(opened, prompt, negative):
    checkpoint, pipeline = opened
    mine, theirs = ours(checkpoint, prompt, negative), stock(pipeline, prompt, negative)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def encoders_of(checkpoint):
    return build_prompt_encoder(checkpoint, ({}, {})).encoders


def by_hand(encoder, token_ids, weights=None, layers_back=None):
    """One chunk through the bare transformers model, and A1111's emphasis written out."""
    tokenizer = encoder.tokenizer
    filling = CHUNK - len(token_ids)
    ids = [tokenizer.bos_token_id, *token_ids, tokenizer.eos_token_id] + [tokenizer.pad_token_id] * filling
    with torch.no_grad():
        output = encoder.model(torch.tensor([ids]), output_hidden_states=True)
    if encoder.penultimate:
        embedding = output.hidden_states[-2 - (layers_back or 0)]
    elif layers_back is None:
        embedding = output.last_hidden_state
    else:
        embedding = encoder.model.final_layer_norm(output.hidden_states[-1 - layers_back])
    if weights is not None:
        mean = embedding.mean()
        scaled = embedding.clone()
        for position, weight in enumerate(weights):
            scaled[:, 1 + position] *= weight
        embedding = scaled * (mean / scaled.mean())
    return embedding


def ids_of(encoder, text):
    return encoder.tokenizer(text, add_special_tokens=False).input_ids


def test_weights_multiply_and_the_mean_comes_back(checkpoint):
    mine = ours(checkpoint, "a (red:1.5) car, [blue] background")
    sides = []
    for encoder in encoders_of(checkpoint):
        pieces = [("a ", 1.0), ("red", 1.5), (" car, ", 1.0), ("blue", 1 / 1.1), (" background", 1.0)]
        ids = [number for text, _ in pieces for number in ids_of(encoder, text)]
        weights = [weight for text, weight in pieces for _ in ids_of(encoder, text)]
        sides.append(by_hand(encoder, ids, weights))
    expected = torch.cat(sides, dim=-1)
    torch.testing.assert_close(mine["prompt_embeds"], expected, rtol=1e-5, atol=1e-6)
    plain = ours(checkpoint, "a red car, blue background")
    assert not torch.allclose(plain["prompt_embeds"], expected, atol=1e-3)
    if "pooled_prompt_embeds" in mine:
        assert torch.equal(mine["pooled_prompt_embeds"], plain["pooled_prompt_embeds"])


def test_a_long_prompt_is_cut_into_chunks_and_the_negative_is_filled_up(checkpoint):
    mine = ours(checkpoint, words(160), "blurry")
    assert mine["prompt_embeds"].shape[1] == mine["negative_prompt_embeds"].shape[1] == 3 * 77
    expected, empty, blurry = [], [], []
    for encoder in encoders_of(checkpoint):
        ids = ids_of(encoder, words(160))
        expected.append(torch.cat([by_hand(encoder, ids[at : at + 75]) for at in (0, 75, 150)], dim=1))
        empty.append(by_hand(encoder, []))
        blurry.append(by_hand(encoder, ids_of(encoder, "blurry")))
    assert torch.equal(mine["prompt_embeds"], torch.cat(expected, dim=-1))
    filled = [torch.cat([first, rest, rest], dim=1) for first, rest in zip(blurry, empty, strict=True)]
    assert torch.equal(mine["negative_prompt_embeds"], torch.cat(filled, dim=-1))
    if "pooled_prompt_embeds" in mine:
        assert torch.equal(mine["pooled_prompt_embeds"], ours(checkpoint, words(75))["pooled_prompt_embeds"])


def test_a_longer_negative_fills_up_the_prompt(checkpoint):
    mine = ours(checkpoint, "a car", words(80))
    assert mine["prompt_embeds"].shape[1] == mine["negative_prompt_embeds"].shape[1] == 2 * 77


def chunk_lengths(encoder, prompt):
    return [len(chunk.ids) for chunk in split_into_chunks(encoder, parse(prompt))]


def test_chunks_are_cut_where_a1111_cuts_them(checkpoint):
    encoder = encoders_of(checkpoint)[0]
    assert chunk_lengths(encoder, "") == [0]
    assert chunk_lengths(encoder, words(75)) == [75]
    assert chunk_lengths(encoder, words(76)) == [75, 1]
    assert chunk_lengths(encoder, f"{words(60)}, {words(20)}") == [61, 20]  # the comma is within the last 20
    assert chunk_lengths(encoder, f"{words(50)}, {words(40)}") == [75, 16]  # it is further back
    assert chunk_lengths(encoder, f"{words(74)}, {words(5)}") == [75, 5]
    assert chunk_lengths(encoder, f"{words(75)}, {words(5)}") == [75, 6]
    assert chunk_lengths(encoder, "a red BREAK blue car") == [2, 2]
    assert chunk_lengths(encoder, "BREAK a") == [0, 1]


def test_the_cut_keeps_each_token_its_weight(checkpoint):
    encoder = encoders_of(checkpoint)[0]
    chunks = split_into_chunks(encoder, [Fragment(words(70) + ", "), Fragment(words(10), 1.4)])
    assert [len(chunk.ids) for chunk in chunks] == [71, 10]
    assert set(chunks[0].weights) == {1.0}
    assert set(chunks[1].weights) == {1.4}


@pytest.mark.parametrize("clip_skip", [0, 1, 2])
def test_clip_skip_counts_as_diffusers_does(opened, clip_skip):
    checkpoint, pipeline = opened
    mine = ours(checkpoint, "a red car", "blurry", clip_skip=clip_skip)
    expected = [
        by_hand(encoder, ids_of(encoder, "a red car"), layers_back=clip_skip) for encoder in encoders_of(checkpoint)
    ]
    assert torch.equal(mine["prompt_embeds"], torch.cat(expected, dim=-1))
    assert torch.equal(mine["negative_prompt_embeds"], ours(checkpoint, "", "blurry")["negative_prompt_embeds"])
    if checkpoint.family == "sdxl":
        assert torch.equal(mine["prompt_embeds"], stock(pipeline, "a red car", clip_skip=clip_skip)["prompt_embeds"])


def test_more_clip_skip_than_layers_is_refused(checkpoint):
    most = 4 if checkpoint.family == "sd15" else 3
    assert ours(checkpoint, "a car", clip_skip=most)
    with pytest.raises(InvalidRequest, match=f"at most {most}"):
        ours(checkpoint, "a car", clip_skip=most + 1)


def test_weights_that_cancel_out_are_refused_instead_of_drawing_noise():
    class Embeds(torch.nn.Module):
        device = torch.device("cpu")

        def forward(self, ids):
            return (torch.ones(1, 77, 4),)

    encoder = Encoder(clip_tokenizer(), Embeds(), penultimate=False)
    with pytest.raises(InvalidRequest, match="cancel"):
        encode_text([encoder], "(cat:-76)")


def inversions(checkpoint, sources):
    if checkpoint.family == "sdxl":
        return [Addition("moodyxl", sources / "moodyxl.safetensors")]
    return [
        Addition("moody", sources / "moody.safetensors"),
        Addition("long-moody", sources / "long-moody.safetensors"),
        Addition("ignored", sources / "named.safetensors"),
    ]


def text_models(checkpoint):
    return [part for name in ("text_encoder", "text_encoder_2") if (part := checkpoint.components.get(name))]


def test_the_vectors_of_a_textual_inversion_stand_in_the_embedding(checkpoint, sources):
    """By hand: the vectors are written into the token embedding's output at the token's place."""
    name, names = ("moodyxl", ("clip_l", "clip_g")) if checkpoint.family == "sdxl" else ("long-moody", ("emb_params",))
    state = load_file(sources / f"{name}.safetensors")
    with textual_inversions(text_models(checkpoint), inversions(checkpoint, sources)) as vectors:
        mine = ours(checkpoint, f"a ({name.upper()}:1.3) car", vectors=(*vectors, {}))
    expected, pooled = [], None
    for encoder, key in zip(encoders_of(checkpoint), names, strict=True):
        rows = state[key]
        ids = [*ids_of(encoder, "a"), *[0] * len(rows), *ids_of(encoder, "car")]
        embedding = getattr(encoder.model, "text_model", encoder.model).embeddings.token_embedding

        def put_in(module, inputs, output, rows=rows):
            return torch.cat([output[:, :2], rows[None], output[:, 2 + len(rows) :]], dim=1)

        hook = embedding.register_forward_hook(put_in)
        try:
            expected.append(by_hand(encoder, ids, [1.0, *[1.3] * len(rows), 1.0]))
            full = [encoder.tokenizer.bos_token_id, *ids, encoder.tokenizer.eos_token_id]
            full += [encoder.tokenizer.pad_token_id] * (77 - len(full))
            with torch.no_grad():
                pooled = encoder.model(torch.tensor([full]))[0]
        finally:
            hook.remove()
    torch.testing.assert_close(mine["prompt_embeds"], torch.cat(expected, dim=-1), rtol=1e-5, atol=1e-6)
    if checkpoint.family == "sdxl":
        torch.testing.assert_close(mine["pooled_prompt_embeds"], pooled)


def test_a_textual_inversion_is_stock_on_sd15(library, sources):
    row = library.require("tiny-sd15")
    checkpoint = load(row.spec, row.path, TorchDevice("cpu"))
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(sources / "tiny-sd15")
    pipeline.load_textual_inversion(sources / "named.safetensors")
    pipeline.load_textual_inversion(sources / "long-moody.safetensors", token="moodyfile")
    additions = [
        Addition("ignored", sources / "named.safetensors"),
        Addition("long", sources / "long-moody.safetensors", token="moodyfile"),
    ]
    prompt = "a photo of <cat-toy> by moodyfile at night"
    with textual_inversions(text_models(checkpoint), additions) as vectors:
        mine = ours(checkpoint, prompt, "not <cat-toy>", vectors=(*vectors, {}))
    theirs = stock(pipeline, prompt, "not <cat-toy>")
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs if theirs[name] is not None)
    assert not torch.equal(mine["prompt_embeds"], ours(checkpoint, prompt)["prompt_embeds"])


def test_a_token_is_found_as_a_word_only_and_never_cut_apart(checkpoint, sources):
    name = "moodyxl" if checkpoint.family == "sdxl" else "long-moody"
    with textual_inversions(text_models(checkpoint), inversions(checkpoint, sources)) as vectors:
        encoder = build_prompt_encoder(checkpoint, (*vectors, {})).encoders[0]
        ids = encoder.vectors[name]
        assert len(ids) > 1
        (only,) = split_into_chunks(encoder, parse(f"a {name}, car"))
        assert only.ids[1 : 1 + len(ids)] == list(ids)
        assert not set(ids) & set(split_into_chunks(encoder, parse(f"x{name}x"))[0].ids)
        first, second = split_into_chunks(encoder, parse(f"{words(74)} {name} car"))
        assert len(first.ids) == 74
        assert second.ids[: len(ids)] == list(ids)


def test_texts_are_remembered_and_a_prompt_list_is_a_batch(checkpoint):
    encoder = build_prompt_encoder(checkpoint, ({}, {}))
    runs = []
    hook = encoder.encoders[0].model.register_forward_hook(lambda *_: runs.append(1))
    try:
        batch = encoder.arguments(["a red car", words(80)], ["", "blurry"], guided=True)
        count = len(runs)
        again = encoder.arguments(["a red car", words(80)], ["", "blurry"], guided=True)
    finally:
        hook.remove()
    assert len(runs) == count
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    assert batch["prompt_embeds"].shape[:2] == (2, 154)
    alone = ours(checkpoint, "a red car", words(80))
    assert torch.equal(batch["prompt_embeds"][:1], alone["prompt_embeds"])


def test_without_guidance_no_negative_is_encoded(checkpoint):
    encoder = build_prompt_encoder(checkpoint, ({}, {}))
    runs = []
    hook = encoder.encoders[0].model.register_forward_hook(lambda *_: runs.append(1))
    try:
        answer = encoder.arguments(["a red car"], ["blurry"], guided=False)
    finally:
        hook.remove()
    assert len(runs) == 1
    assert not any(name.startswith("negative") for name in answer)


def word_tokenizer():
    """A tokenizer of whole words whose end token has a small id and that knows no comma."""
    from transformers import CLIPTokenizer

    special = ["<|startoftext|>", "<|endoftext|>", "<|unknown|>"]
    letters = ["a", "b", "c", "a</w>", "b</w>", "c</w>"]
    vocabulary = {token: number for number, token in enumerate([*special, *letters])}
    return CLIPTokenizer(vocab=vocabulary, merges=[], unk_token="<|unknown|>", model_max_length=77)


def test_an_unknown_word_is_no_comma():
    encoder = Encoder(word_tokenizer(), None, penultimate=True)
    assert encoder.comma is None
    assert chunk_lengths(encoder, "a " * 70 + "? " + "a " * 20) == [75, 16]
    assert Encoder(clip_tokenizer(), None, penultimate=True).comma == 267


def test_the_shipped_tokenizer_is_clips():
    tokenizer = clip_tokenizer()
    assert len(tokenizer) == 49408
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("It's 12345 cats!!").input_ids[1:-1] == [585, 568, 272, 273, 274, 275, 276, 3989, 748]
    assert clip_tokenizer(pad_token="!").pad_token_id == 0
