"""What draws maps with weights: tiny networks through the product's loader, beside transformers' own way."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import (
    ConvNextConfig,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTImageProcessor,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrImageProcessor,
    RTDetrResNetConfig,
    SegformerImageProcessor,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    VitPoseBackboneConfig,
    VitPoseConfig,
    VitPoseForPoseEstimation,
    VitPoseImageProcessor,
)

from app.core.catalog import CATALOG
from app.errors import InvalidRequest
from app.imaging import control_maps
from app.imaging.ade20k import colour_classes
from app.models import preprocessors
from app.models.device import TorchDevice
from app.pocket import world
from app.pocket.checkpoints import rng_of

CPU = TorchDevice("cpu", "float32")
PICTURE = world.draw(world.random_portrait(rng_of("a portrait")), 128).resize((160, 112))


def save(folder, network, processor):
    network.eval().save_pretrained(folder, safe_serialization=True)
    processor.save_pretrained(folder)
    return folder


def opened(folder, task, parts=()):
    return preprocessors.load(SimpleNamespace(id="tiny", tasks=(task,)), folder, CPU, parts)


@pytest.fixture
def depth_folder(tmp_path):
    torch.manual_seed(0)
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = Dinov2Config(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=56, patch_size=14,
        out_features=stages, reshape_hidden_states=False,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=32, neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=8,
        head_hidden_size=8, patch_size=14,
    )  # fmt: skip
    processor = DPTImageProcessor(size={"height": 56, "width": 56}, ensure_multiple_of=14, keep_aspect_ratio=True)
    network = DepthAnythingForDepthEstimation(config)
    with torch.no_grad():
        network.head.conv3.weight.mul_(1e4)  # random weights of this size see next to no depth
    return save(tmp_path / "depth", network, processor)


def test_depth_is_transformers_own_and_normals_are_drawn_from_it(depth_folder):
    maker = opened(depth_folder, "depth-map")
    network = DepthAnythingForDepthEstimation.from_pretrained(depth_folder).eval()
    processor = DPTImageProcessor.from_pretrained(depth_folder)
    with torch.no_grad():
        answer = network(**processor(images=PICTURE, return_tensors="pt"))
    wanted = processor.post_process_depth_estimation(answer, target_sizes=[PICTURE.size[::-1]])[0]["predicted_depth"]
    assert np.array_equal(maker.depth(PICTURE), wanted.numpy())
    drawn = maker.map(PICTURE, "depth")
    assert drawn.size == PICTURE.size and np.asarray(drawn).min() == 0 and np.asarray(drawn).max() == 255
    normals = np.asarray(maker.map(PICTURE, "normal"), int)
    assert np.array_equal(normals, np.asarray(control_maps.normal_map(wanted.numpy()), int))
    assert abs(np.linalg.norm(normals / 127.5 - 1, axis=2) - 1).max() < 0.02, "a direction has length 1"


def test_classes_are_transformers_own_in_ade20ks_colours(tmp_path):
    torch.manual_seed(0)
    backbone = ConvNextConfig(
        hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    config = UperNetConfig(
        backbone_config=backbone, hidden_size=16, auxiliary_in_channels=24, auxiliary_channels=16, num_labels=150
    )
    processor = SegformerImageProcessor(size={"height": 64, "width": 64})
    folder = save(tmp_path / "classes", UperNetForSemanticSegmentation(config), processor)
    network = UperNetForSemanticSegmentation.from_pretrained(folder).eval()
    with torch.no_grad():
        answer = network(**processor(images=PICTURE, return_tensors="pt"))
    wanted = processor.post_process_semantic_segmentation(answer, target_sizes=[PICTURE.size[::-1]])[0].numpy()
    drawn = opened(folder, "segmentation-map").map(PICTURE, "segmentation")
    assert drawn.size == PICTURE.size and np.array_equal(np.asarray(drawn), np.asarray(colour_classes(wanted)))


@pytest.fixture
def pose(tmp_path):
    torch.manual_seed(0)
    backbone = VitPoseBackboneConfig(
        image_size=[64, 48], patch_size=[16, 16], hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        out_indices=[2],
    )  # fmt: skip
    config = VitPoseConfig(backbone_config=backbone, num_labels=17, scale_factor=4, use_simple_decoder=True)
    bodies = save(
        tmp_path / "pose", VitPoseForPoseEstimation(config), VitPoseImageProcessor(size={"height": 64, "width": 48})
    )
    people = RTDetrConfig(
        backbone_config=RTDetrResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic",
            out_features=["stage2", "stage3", "stage4"],
        ),
        encoder_hidden_dim=32, encoder_in_channels=[16, 24, 32], encoder_ffn_dim=32, encoder_attention_heads=2,
        d_model=32, decoder_in_channels=[32, 32, 32], decoder_ffn_dim=32, decoder_layers=1, decoder_attention_heads=2,
        num_queries=10, num_labels=2, id2label={0: "person", 1: "car"}, label2id={"person": 0, "car": 1},
    )  # fmt: skip
    processor = RTDetrImageProcessor(size={"height": 64, "width": 64})
    detector = save(tmp_path / "people", RTDetrForObjectDetection(people), processor)
    return opened(bodies, "pose-map", [SimpleNamespace(spec=SimpleNamespace(kind="preprocessor"), path=detector)])


def test_bodies_are_drawn_in_the_boxes_of_people_and_nobody_is_said(pose, monkeypatch):
    box = np.array([[20.0, 10.0, 100.0, 90.0]])
    assert pose.people(PICTURE).shape[1] == 4
    points, scores = pose.bodies(PICTURE, box)[0]
    assert points.shape == (18, 2) and scores.shape == (18,)
    wanted = pose.processor.post_process_pose_estimation(
        pose.network(**pose.processor(images=PICTURE, boxes=[box], return_tensors="pt")), boxes=[box]
    )[0][0]["keypoints"]
    assert np.allclose(points[0], wanted[0].detach().numpy()), "the nose is OpenPose's first point"
    monkeypatch.setattr(preprocessors, "SURE_OF_A_PERSON", 1.1)
    with pytest.raises(InvalidRequest, match="Nobody is seen"):
        pose.map(PICTURE, "openpose")


def test_files_that_are_not_whole_are_refused(depth_folder):
    (depth_folder / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(InvalidRequest, match="not whole"):
        opened(depth_folder, "depth-map")


def test_every_map_that_needs_weights_has_a_row():
    assert any(capability.name == "controlnet/preprocess" for capability in CATALOG)
    from app.models.catalog import CATALOG as ROWS

    for task in preprocessors.MAKERS:
        assert any(task in row.tasks for row in ROWS), task
