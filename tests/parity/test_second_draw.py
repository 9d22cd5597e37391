"""A draw that nobody was shown: by the plain words of `derivation`, in a folder as EIS_PARITY names one.

`derivation` uses nothing of the product and agrees with the references' own numbers at the published draw, so that what
it says of another draw stands for theirs. And no comparison is one that cannot fail: a number that is off is noticed.
"""

import pytest

from tests.parity import cases, derivation, test_identity, test_step1x
from tests.parity.test_keypoint_drawing import test_the_drawing_is_the_references_pixel_for_pixel as compare_drawings

NAMES = sorted(derivation.DERIVED)
LEAST_NOTICED = 2 * test_identity.TOLERANCE


def published(name):
    return cases.ParityCase(name, cases.DATA / name)


def connector_and_velocity(parity_case, tmp_path):
    """Both versions of Step1X-Edit."""
    for version in ("1.1", "1.2"):
        (tmp_path / "of" / version).mkdir(parents=True)
        test_step1x.test_connector_and_velocity(parity_case, tmp_path / "of" / version, version)


@pytest.mark.parametrize("name", NAMES)
def test_plain_words_agree_with_the_reference(name):
    case = published(name)
    found = derivation.derive(case)
    assert found.keys() == case.expected.keys()
    for key, value in case.expected.items():
        assert test_identity.error(found[key].float(), value.float()) < test_identity.TOLERANCE / 4, key


@pytest.mark.parametrize(
    ("name", "compared"),
    [
        ("pulid_v1", (test_identity.test_pulid_v1_encoder,)),
        ("pulid", (test_identity.test_pulid_idformer, test_identity.test_pulid_noise)),
        ("instantid", (test_identity.test_instantid_noise, compare_drawings)),
        ("ecomid", (test_identity.test_ecomid_noise,)),
        ("step1x_edit", (connector_and_velocity, test_step1x.test_instructions_are_cut_at_quotes)),
    ],
)
def test_a_second_draw_in_a_folder_of_its_own_passes(tmp_path, monkeypatch, name, compared):
    derivation.write(published(name).with_salt("second"), tmp_path / "cases" / name)
    monkeypatch.setenv("EIS_PARITY", str(tmp_path / "cases"))
    case = cases.find(name)
    assert case.salt == "second" and all(cases.find(other) is None for other in NAMES if other != name)
    for key, value in published(name).expected.items():
        apart = test_identity.error(case.expected[key].float(), value.float())
        assert (apart == 0) if key in derivation.NEVER_SALTED else (apart > 0.01), key
    for compare in compared:
        call(compare, case, tmp_path)


def call(compare, case, folder):
    """A comparison as pytest would call it, with this case."""
    more = (folder,) if "tmp_path" in compare.__code__.co_varnames[: compare.__code__.co_argcount] else ()
    compare(lambda name: case, *more)


@pytest.mark.parametrize(
    ("name", "key", "compare"),
    [
        ("pulid_v1", "idencoder", test_identity.test_pulid_v1_encoder),
        ("pulid_v1", "idencoder.uncond", test_identity.test_pulid_v1_encoder),
        ("pulid", "idformer.one_image", test_identity.test_pulid_idformer),
        ("pulid", "idformer.two_images", test_identity.test_pulid_idformer),
        ("pulid", "idformer.uncond", test_identity.test_pulid_idformer),
        ("pulid", "unet.ortho_v2.num_zero8.scale0.8", test_identity.test_pulid_noise),
        ("instantid", "image_tokens", test_identity.test_instantid_noise),
        ("instantid", "noise.ip0.8.control0.7", test_identity.test_instantid_noise),
        ("ecomid", "identitynet_tokens", test_identity.test_ecomid_noise),
        ("ecomid", "noise.style", test_identity.test_ecomid_noise),
        ("step1x_edit", "connector.tokens", connector_and_velocity),
        ("step1x_edit", "connector.pooled", connector_and_velocity),
        ("step1x_edit", "v1p1.velocity", connector_and_velocity),
        ("step1x_edit", "v1p2.velocity", connector_and_velocity),
    ],
)
def test_one_number_that_is_off_is_noticed(tmp_path, name, key, compare):
    case = published(name)
    value = case.expected[key].clone()
    value.view(-1)[-1] += LEAST_NOTICED
    case.__dict__["expected"] = {**case.expected, key: value}
    with pytest.raises(AssertionError):
        call(compare, case, tmp_path)
