"""The keypoint picture that IdentityNet reads, against the reference: pixel for pixel."""

import numpy as np

from app.imaging.keypoints import draw_keypoints


def test_the_drawing_is_the_references_pixel_for_pixel(parity_case):
    case = parity_case("instantid")
    drawing = case.config["kps"]
    assert len(drawing["points"]) >= 2
    for number, points in enumerate(drawing["points"]):
        ours = np.asarray(draw_keypoints(tuple(drawing["size"]), np.array(points)))
        expected = case.expected[f"kps{number}"].numpy()
        assert ours.shape == expected.shape
        assert expected.max() == 255 and ours.any()
        assert np.array_equal(ours, expected)
