"""SAM and SAM 2 at random weights: equal to the stock processor and model, and a picture is encoded once."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import Sam2ImageProcessor, Sam2Processor, SamImageProcessor, SamProcessor

from app.errors import InvalidRequest
from app.imaging.prompts import Prompts
from app.models import segmenters
from app.models.device import TorchDevice
from app.models.library import ModelLibrary
from app.models.segmenters import SamSegmenter
from tests.models.segmenting_networks import tiny_sam, tiny_sam2

SIZE = (90, 60)


def noise(seed=0, size=SIZE):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.fixture(params=["sam", "sam2"])
def network(request):
    return {"sam": tiny_sam, "sam2": tiny_sam2}[request.param]()


@pytest.fixture
def sam(network):
    return SamSegmenter(network, TorchDevice("cpu", "float32"))


@pytest.fixture
def at_work(sam):
    return sam.at_work(nullcontext, lambda: None)


def stock(network, image, **prompts):
    """(masks [things, 3, height, width], scores [things, 3]) as transformers' own processor and model make them."""
    side = network.config.prompt_encoder_config.image_size
    square = {"height": side, "width": side}
    if type(network).__name__ == "SamModel":
        processor = SamProcessor(SamImageProcessor(size={"longest_edge": side}, pad_size=square))
    else:
        processor = Sam2Processor(Sam2ImageProcessor(size=square))
    inputs = processor(images=image, return_tensors="pt", **prompts)
    sizes = [inputs.pop(name) for name in ("original_sizes", "reshaped_input_sizes") if name in inputs]
    with torch.no_grad():
        answer = network(**{name: value.float() if value.is_floating_point() else value
                            for name, value in inputs.items()})  # fmt: skip
    masks = processor.image_processor.post_process_masks(answer.pred_masks, *sizes)[0]
    return masks.numpy(), answer.iou_scores[0].numpy()


def alike(segments, masks, scores):
    for segment, mask, score in zip(segments, masks, scores, strict=True):
        assert segment.mask.size == SIZE
        assert np.array_equal(np.asarray(segment.mask) > 0, mask)
        assert segment.score == pytest.approx(float(score), abs=1e-5)


def test_points_give_the_three_masks_of_the_stock_model(network, at_work):
    image = noise()
    points, labels = [[[[20.0, 30.0], [70.0, 10.0]]]], [[[1, 0]]]
    masks, scores = stock(network, image, input_points=points, input_labels=labels)
    found = at_work.segment(image, Prompts(points=((20, 30),), negative_points=((70, 10),)))
    assert len(found) == 3
    alike(found, masks[0], scores[0])


def test_a_box_gives_three_masks_and_several_boxes_the_best_one_each(network, at_work):
    image, boxes = noise(), [[10.0, 5.0, 60.0, 50.0], [30.0, 20.0, 80.0, 55.0]]
    masks, scores = stock(network, image, input_boxes=[boxes[:1]])
    alike(at_work.segment(image, Prompts(boxes=(tuple(boxes[0]),))), masks[0], scores[0])
    masks, scores = stock(network, image, input_boxes=[boxes])
    best = scores.argmax(1)
    found = at_work.segment(image, Prompts(boxes=tuple(map(tuple, boxes))))
    alike(found, masks[[0, 1], best], scores[[0, 1], best])


def test_a_picture_is_encoded_once_and_only_the_last_are_kept(sam, at_work):
    passes = []
    encoder = sam.network.vision_encoder
    encoder.register_forward_hook(lambda *_: passes.append(1))
    first, again = noise(1), noise(1)
    for place in ((20, 30), (50, 20), (80, 50)):
        at_work.segment(first, Prompts(points=(place,)))
    at_work.segment(again, Prompts(boxes=((5, 5, 40, 40),)))
    assert len(passes) == sam.calls["encoder"] == 1 and sam.calls["decoder"] == 4
    for seed in range(2, 2 + segmenters.REMEMBERED_PICTURES):
        at_work.segment(noise(seed), Prompts(points=((20, 30),)))
    at_work.segment(first, Prompts(points=((20, 30),)))
    assert len(passes) == 2 + segmenters.REMEMBERED_PICTURES


def test_everything_keeps_what_is_sure_and_one_of_what_is_alike(sam, at_work, monkeypatch):
    """Random weights are sure of nothing; with all that they answer let through, no two masks are of one thing."""
    image = noise()
    monkeypatch.setattr(segmenters, "POINTS_PER_SIDE", 4)
    monkeypatch.setattr(segmenters, "POINTS_AT_ONCE", 6)
    monkeypatch.setattr(segmenters, "LEAST_SCORE", -100.0)
    monkeypatch.setattr(segmenters, "LEAST_STABILITY", 0.0)
    found = at_work.everything(image)
    assert 1 <= len(found) <= segmenters.MOST_SEGMENTS
    sizes = [np.asarray(segment.mask).sum() for segment in found]
    assert all(size > 0 for size in sizes)
    assert sam.calls["encoder"] == 1 and sam.calls["decoder"] == 3
    monkeypatch.setattr(segmenters, "LEAST_SCORE", 100.0)
    assert at_work.everything(image) == []


def test_stability_is_the_overlap_above_and_below_the_threshold():
    logits = torch.tensor([[[2.0, 0.5, -0.5, -2.0]], [[2.0, 2.0, -2.0, -2.0]]])
    assert segmenters.stability(logits).tolist() == pytest.approx([1 / 3, 1.0])


def test_a_folder_of_ones_own_is_recognised_and_opened(tmp_path, network):
    network.save_pretrained(tmp_path / "mine")
    library = ModelLibrary(tmp_path / "home")
    row = library.add(tmp_path / "mine", id="mine")
    assert row.spec.kind == "segmenter" and row.spec.tasks == ("segment",) and row.installed
    assert library.choose(("segment",)).spec.id == "mine", "one with weights goes before GrabCut"
    opened = segmenters.load(row.spec, row.path, TorchDevice("cpu", "float32"))
    mine = opened.at_work(nullcontext, lambda: None).segment(noise(), Prompts(points=((20, 30),)))
    own = SamSegmenter(network, TorchDevice("cpu", "float32")).at_work(nullcontext, lambda: None)
    for one, other in zip(mine, own.segment(noise(), Prompts(points=((20, 30),))), strict=True):
        assert one.mask.tobytes() == other.mask.tobytes() and one.score == pytest.approx(other.score)


def test_another_folder_is_not_taken_for_one(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}')
    save_file({"some.weight": torch.zeros(2, 2)}, tmp_path / "other" / "model.safetensors")
    with pytest.raises(InvalidRequest, match="not in the diffusers layout"):
        ModelLibrary(tmp_path / "home").add(tmp_path / "other", id="other")
