"""The people that the identity modules learn from: parts, points and depths agree with the picture."""

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402

from app.pocket import crops, face_networks, measure, people, portraits, world  # noqa: E402
from app.pocket.checkpoints import rng_of  # noqa: E402


def portrait(number, **looks):
    rng = rng_of("people test", number)
    while True:
        scene = world.random_portrait(rng)
        if all(getattr(scene.person, name) == value for name, value in looks.items()):
            return scene


def test_the_pictures_of_one_person_share_face_and_looks_and_nothing_else():
    scenes = [people.scene_of("a", index) for index in range(8)]
    assert all(scene.geometry == scenes[0].geometry for scene in scenes[:4])
    assert scenes[4].geometry != scenes[0].geometry
    assert len({tuple(people.looks_of(scene)) for scene in scenes[:4]}) == 1
    assert len({scene.person.clothing_colour for scene in scenes[:4]}) > 1
    assert people.scene_of("a", 3) == people.scene_of("a", 3) != people.scene_of("b", 3)


def test_parts_lie_where_the_picture_shows_them():
    scene = portrait(0, glasses="none", pose="front", expression="neutral", hair_style="short", beard=False)
    parts = np.asarray(world.parts(scene))
    picture = np.asarray(world.draw(scene))
    points = np.array(world.keypoints(scene))

    def shown(name):
        return parts == portraits.PARTS.index(name)

    assert shown("background")[:4].all()
    background = np.array(world.COLOURS[scene.background])
    assert np.abs(picture[shown("background")].astype(int) - background).max(-1).mean() < 8
    for name, some in (("left_eye", points[36:42]), ("right_eye", points[42:48]), ("nose", points[30:31])):
        x, y = some.mean(0).round().astype(int)
        assert parts[y, x] == portraits.PARTS.index(name)
    assert shown("hair").sum() > 300 and shown("clothes").sum() > 1000
    assert measure.most_common(picture[shown("clothes")], world.COLOURS) == scene.person.clothing_colour


def test_depth_is_greatest_at_the_tip_of_the_nose_and_follows_the_turn():
    front = portrait(1, pose="front")
    depths = world.keypoint_depths(front)
    assert max(range(68), key=depths.__getitem__) in range(28, 36)
    right = np.array(world.keypoint_depths(portrait(2, pose="right")))  # the nose goes right: the right eye goes back
    assert right[36:42].mean() > right[42:48].mean()
    yaw, pitch = world.pose(portrait(3, pose="left"))
    assert -35 < yaw < -25 and abs(pitch) < 4


def test_a_crop_shows_the_points_where_the_template_has_them():
    scenes = [portrait(number) for number in range(4)]
    pictures = crops.to_unit(np.stack([np.asarray(world.draw(scene)) for scene in scenes]))
    points = torch.tensor([world.faces.five_points(world.keypoints(scene)) for scene in scenes])
    matrices = crops.similarity(points, crops.ARCFACE)
    moved = crops.move(points, matrices)
    assert (moved - crops.ARCFACE).norm(dim=-1).mean() < 8
    from insightface.utils import face_align

    for picture, some, matrix in zip(pictures, points, matrices, strict=True):
        wanted = face_align.estimate_norm(some.numpy().astype(np.float32))
        assert np.abs(wanted - matrix.numpy()).max() < 1e-2
        image = (picture.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
        crop = face_align.norm_crop(image, some.numpy().astype(np.float32))
        ours = crops.warp(picture[None], matrix[None], 112)[0].permute(1, 2, 0).numpy() * 255
        assert np.abs(ours - crop).mean() < 2


def test_a_map_with_one_bright_place_is_a_point_there():
    reader = face_networks.PointReader(64).eval()
    assert (reader.places.min(), reader.places.max()) == (-1 + 1 / 16, 1 - 1 / 16)
    bright = torch.zeros(1, reader.POINTS, 16, 16)
    bright[0, 0, 3, 12] = 100
    reader.maps = torch.nn.Sequential()
    reader.maps.forward = lambda _: bright
    points, channels = reader(torch.zeros(1, 3, 64, 64))
    assert channels.shape == (1, reader.channels)
    assert torch.allclose(points[0, 0], torch.tensor([12.5 / 8 - 1, 3.5 / 8 - 1]), atol=1e-5)
    assert points[0, 1].abs().max() < 1e-5  # a map that says nothing: the middle
