"""The tokenizer knows the world's words, and every other word is one token that says nothing."""

import pytest

from app.pocket import captions
from app.pocket.networks import LONGEST_UNKNOWN, build_tokenizer

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(captions.vocabulary()).save_pretrained(folder)
    return transformers.CLIPTokenizer.from_pretrained(folder)


def test_it_is_the_plain_class_and_survives_saving(tokenizer, tmp_path):
    assert type(tokenizer) is transformers.CLIPTokenizer
    text = "A Red car, next to a zeppelin; T-shirt"
    tokenizer.save_pretrained(tmp_path)
    assert transformers.CLIPTokenizer.from_pretrained(tmp_path)(text).input_ids == tokenizer(text).input_ids


def test_known_words_are_one_token_each_in_any_case(tokenizer):
    words = captions.vocabulary()
    ids = [tokenizer(word).input_ids for word in words]
    assert all(len(some) == 3 and some[0] == 0 and some[-1] == 1 for some in ids)
    assert len({some[1] for some in ids}) == len(words)
    assert tokenizer("RED Car").input_ids == tokenizer("red car").input_ids


@pytest.mark.parametrize(
    "word", ["zeppelin", "photorealistic", "Straße", "猫", "carpet", "8k", ",", "(", "!!!", "naïve"]
)
def test_any_other_word_is_an_unknown_token(tokenizer, word):
    plain = tokenizer("a red car").input_ids
    with_word = tokenizer(f"a red {word} car").input_ids
    unknown = [token for token in with_word if token not in plain]
    assert 1 <= len(unknown) <= 2
    assert all(2 <= token < 2 + LONGEST_UNKNOWN for token in unknown)
    assert [token for token in with_word if token in plain] == plain


def test_padding_and_truncation_are_those_of_clip(tokenizer):
    ids = tokenizer("a red car", padding="max_length", max_length=77, truncation=True).input_ids
    assert len(ids) == 77 and ids[0] == 0 and set(ids[4:]) == {1}
    assert len(tokenizer("car " * 200, max_length=77, truncation=True).input_ids) == 77
