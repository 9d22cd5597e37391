"""A trainer's gradients, steps, states and files, against plain diffusers and peft on tiny checkpoints."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from diffusers import AutoPipelineForText2Image, DDPMScheduler
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from safetensors import safe_open

from app.errors import DependencyMissing, InvalidRequest
from app.models import machine
from app.models.optimisers import make_optimiser, optimiser_state, restore_optimiser
from app.models.training_dataset import Batches, Sample, buckets, cut_to_bucket
from tests.models import trained_models
from tests.models.tiny_checkpoints import make_sd15, make_sdxl
from tests.models.trained_models import PLAN, pictures

library, runtime = trained_models.library, trained_models.runtime
CAPTIONS = ["photo of a style cat", "a red car", "photo of a style cat"]


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    return {"sd15": make_sd15, "sdxl": make_sdxl}[family](tmp_path_factory.mktemp("published") / family)


def plain_training(folder, plan, steps):
    """The same training by hand: plain diffusers and peft, on what a dataset of these pictures is."""
    pipe = AutoPipelineForText2Image.from_pretrained(folder, safety_checker=None, local_files_only=True)
    pipe.unet.requires_grad_(False), pipe.vae.requires_grad_(False)
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    torch.manual_seed(plan.seed)
    targets = ["to_k", "to_q", "to_v", "to_out.0"]
    pipe.unet.add_adapter(
        LoraConfig(r=plan.rank, lora_alpha=plan.lora_alpha, init_lora_weights="gaussian", target_modules=targets)
    )
    learning = [parameter for parameter in pipe.unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=plan.learning_rate, betas=(0.9, 0.999), weight_decay=1e-4)
    losses, gradients = [], None
    sizes = buckets(plan.resolution, 8 * 2)
    cuts = [cut_to_bucket(image, sizes) for image in pictures()]
    with torch.no_grad():
        pixels = [torch.tensor(np.array(cut)).permute(2, 0, 1)[None] / 127.5 - 1 for cut, _ in cuts]
        spread = [pipe.vae.encode(one).latent_dist for one in pixels]
    order = Batches([Sample(one.parameters[0], str(number), ()) for number, one in enumerate(spread)], 1, plan.seed)
    for step in range(steps):
        (number,) = [int(sample.caption) for sample in order.batch(step)]
        chance = torch.Generator().manual_seed(plan.seed * 2 + step * 7919)
        latents = spread[number].sample(chance) * pipe.vae.config.scaling_factor
        noise = torch.randn(latents.shape, generator=chance)
        times = torch.randint(0, 1000, (1,), generator=chance)
        with torch.no_grad():
            text = pipe.encode_prompt(
                CAPTIONS[number], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
            )
        more = (
            {"added_cond_kwargs": {"text_embeds": text[2], "time_ids": torch.tensor([cuts[number][1]])}}
            if len(text) > 2
            else {}
        )
        told = pipe.unet(scheduler.add_noise(latents, noise, times), times, text[0], **more).sample
        loss = torch.nn.functional.mse_loss(told, noise)
        loss.backward()
        gradients = gradients or {name: p.grad.clone() for name, p in pipe.unet.named_parameters() if p.requires_grad}
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step(), optimizer.zero_grad()
        losses.append(loss.item())
    return losses, gradients, get_peft_model_state_dict(pipe.unet)


def test_gradients_and_steps_are_those_of_plain_diffusers_and_peft(runtime, folder):
    losses, gradients, matrices = plain_training(folder, PLAN, 4)
    with runtime.trainer("tiny", PLAN) as trainer:
        trainer.prepare(pictures(), CAPTIONS)
        with trainer._working():
            trainer.loss(0).backward()
        for name, matrix in trainer._named_matrices():
            expected = gradients[name.removeprefix("unet.").replace(".weight", ".default.weight")]
            assert torch.allclose(matrix.grad, expected, atol=1e-5), name
        trainer.optimiser.zero_grad()
        assert [trainer.step(number) for number in range(1, 5)] == pytest.approx(losses, abs=1e-5)
        found = trainer.matrices()
    assert {name.removeprefix("unet.") for name in found} == set(matrices)
    for name, matrix in matrices.items():
        assert torch.allclose(found[f"unet.{name}"], matrix, atol=1e-5), name
        assert matrix.abs().max() > 1e-3


def test_min_snr_weighs_the_loss(runtime):
    plain = losses_of(runtime, PLAN, 1)[0]
    weighed = losses_of(runtime, dataclasses.replace(PLAN, snr_gamma=5.0), 1)[0]
    chance = torch.Generator().manual_seed(PLAN.seed * 2)
    with runtime.trainer("tiny", PLAN) as trainer:
        trainer.prepare(pictures(), CAPTIONS)
        sample = trainer._samples.batch(0)[0]
        torch.randn(sample.moments.chunk(2)[0].shape, generator=chance)
        torch.randn(sample.moments.chunk(2)[0].shape, generator=chance)
        time = torch.randint(0, 1000, (1,), generator=chance)
        cumulative = trainer.lessons.noise_scheduler.alphas_cumprod[time].item()
    snr = cumulative / (1 - cumulative)
    assert weighed == pytest.approx(plain * min(snr, 5.0) / snr, rel=1e-4)


def losses_of(runtime, plan, steps, **prepared):
    with runtime.trainer("tiny", plan) as trainer:
        trainer.prepare(pictures(), CAPTIONS, **prepared)
        return [trainer.step(number) for number in range(1, steps + 1)]


@pytest.mark.parametrize(
    "changes",
    [
        {"gradient_checkpointing": True},
        {"mixed_precision": "no"},
    ],
)
def test_what_must_change_nothing_changes_nothing(runtime, changes):
    changed = losses_of(runtime, dataclasses.replace(PLAN, **changes), 2)
    assert changed == pytest.approx(losses_of(runtime, PLAN, 2), abs=1e-5)


def test_bf16_is_near(runtime):
    rough = losses_of(runtime, dataclasses.replace(PLAN, mixed_precision="bf16"), 2)
    exact = losses_of(runtime, PLAN, 2)
    assert rough != exact
    assert rough == pytest.approx(exact, rel=0.05)


def test_text_encoders_learn_on_wish_and_prior_pictures_count(runtime):
    plan = dataclasses.replace(PLAN, train_text_encoder=True, text_encoder_lr=1e-3, train_batch_size=2)
    with runtime.trainer("tiny", plan) as trainer:
        trainer.prepare(pictures(), CAPTIONS, class_images=pictures()[:1], class_prompt="a car")
        before = trainer.matrices()
        for number in (1, 2):
            trainer.step(number)
        after = trainer.matrices()
    learned = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert learned == set(trainer.networks) and "text_encoder" in learned
    alone = losses_of(runtime, PLAN, 1)
    assert losses_of(runtime, PLAN, 1, class_images=pictures()[:1], class_prompt="a car")[0] > alone[0]


@pytest.mark.parametrize("train_text_encoder", [False, True])
def test_kinds_of_a_class_take_turns_and_each_has_its_own_text(runtime, train_text_encoder):
    plan = dataclasses.replace(PLAN, train_text_encoder=train_text_encoder)
    told = {"class_images": pictures(), "class_prompt": "a red car\n\n a cat "}
    with runtime.trainer("tiny", plan) as trainer:
        trainer.prepare(pictures(), CAPTIONS, **told)
        kept = [sample.caption for sample in trainer._class_samples.samples]
        assert trainer.step(1) > 0
    assert kept == ["a red car", "a cat", "a red car"]
    both = losses_of(runtime, plan, 3, **told)
    assert both != losses_of(runtime, plan, 3, **told | {"class_prompt": "a red car"})


@pytest.mark.parametrize("optimizer", ["adamw", "prodigy"])
def test_a_restored_training_goes_on_as_if_it_had_never_stopped(runtime, optimizer, tmp_path):
    rate = 1.0 if optimizer == "prodigy" else 1e-2
    plan = dataclasses.replace(PLAN, optimizer=optimizer, learning_rate=rate, lr_scheduler="cosine", lr_warmup_steps=2)
    whole = losses_of(runtime, plan, 6)
    with runtime.trainer("tiny", plan) as trainer:
        trainer.prepare(pictures(), CAPTIONS)
        first = [trainer.step(number) for number in range(1, 4)]
        trainer.save(tmp_path)
    with runtime.trainer("tiny", plan) as trainer:
        trainer.prepare(pictures(), CAPTIONS)
        trainer.restore(tmp_path)
        rest = [trainer.step(number) for number in range(4, 7)]
    assert first + rest == whole
    assert len(set(whole)) == 6


def test_eight_bits_need_cuda_and_then_the_package(runtime, monkeypatch):
    with (
        pytest.raises(InvalidRequest, match="CUDA devices alone"),
        runtime.trainer("tiny", dataclasses.replace(PLAN, optimizer="adamw-8bit")),
    ):
        pass
    monkeypatch.setitem(machine.PACKAGES, "adamw-8bit", ("no_such_module", "bitsandbytes", "train"))
    with pytest.raises(DependencyMissing, match=r"needs the package bitsandbytes: .*\[train\]"):
        make_optimiser("adamw-8bit", [], torch.device("cuda"))


def test_a_state_inside_a_state_is_kept_as_bitsandbytes_has_it():
    learning = torch.nn.Parameter(torch.ones(4))
    optimiser = torch.optim.AdamW([learning], lr=0.1)
    few_bits = {"absmax1": torch.rand(2), "state1": torch.arange(4, dtype=torch.uint8), "block": 256}
    optimiser.state[learning] = {"step": 3, "quantised": few_bits}
    tensors, rest = optimiser_state(optimiser)
    assert set(tensors) == {"0.quantised.absmax1", "0.quantised.state1"} and rest["state"]["0"]["step"] == 3
    other = torch.optim.AdamW([torch.nn.Parameter(torch.ones(4))], lr=0.2)
    restore_optimiser(other, tensors, json.loads(json.dumps(rest)))
    (found,) = other.state.values()
    assert found["quantised"]["block"] == 256 and torch.equal(found["quantised"]["absmax1"], few_bits["absmax1"])
    assert torch.equal(found["quantised"]["state1"].to(torch.uint8), few_bits["state1"])


def drawn(pipeline, **more):
    return pipeline(
        prompt="photo of a style cat",
        num_inference_steps=3,
        guidance_scale=3.0,
        width=64,
        height=64,
        generator=torch.Generator().manual_seed(5),
        **more,
    ).images[0]


@pytest.mark.parametrize("with_text", [False, True])
def test_the_file_draws_the_same_in_the_stock_pipeline_the_service_and_the_trainer(
    runtime, library, folder, family, tmp_path, with_text
):
    plan = dataclasses.replace(PLAN, train_text_encoder=with_text, text_encoder_lr=1e-2)
    file = tmp_path / f"learned-{family}-{with_text}.safetensors"
    with runtime.trainer("tiny", plan) as trainer:
        trainer.prepare(pictures(), CAPTIONS)
        for number in range(1, 4):
            trainer.step(number)
        trainer.write(file, {"modelspec.trigger_phrase": "style", "ss_tag_frequency": json.dumps({"a": 1})})
        seen = trainer.draw(
            scheduler="DDIM",
            prompt="photo of a style cat",
            num_inference_steps=3,
            guidance_scale=3.0,
            width=64,
            height=64,
            generator=runtime.generators(5, 1)[0],
        )
    row = library.add(file)
    assert (row.spec.kind, row.spec.family, row.spec.options["trigger"]) == ("lora", family, "style")
    with safe_open(file, "pt") as weights:
        names, told = set(weights.keys()), weights.metadata()
    assert told["ss_network_dim"] == "4" and told["ss_network_alpha"] == "8"
    ends = {".".join(name.split(".")[1:]) for name in names}
    starts = {"_".join(name.split("_")[:2]) for name in names}
    encoders = {"sd15": {"lora_te"}, "sdxl": {"lora_te1", "lora_te2"}}[family] if with_text else set()
    assert ends == {"lora_down.weight", "lora_up.weight", "alpha"}
    assert starts == {"lora_unet"} | encoders
    wish = type("Wish", (), {"model": row.spec.id, "weight": 1.0})
    with runtime.borrow("tiny", task="text-to-image", scheduler="DDIM", loras=[wish]) as pipeline:
        served = drawn(pipeline)
    with runtime.borrow("tiny", task="text-to-image", scheduler="DDIM") as pipeline:
        bare = drawn(pipeline)
    stock = AutoPipelineForText2Image.from_pretrained(folder, safety_checker=None, local_files_only=True)
    stock.set_progress_bar_config(disable=True)
    with runtime.borrow("tiny", task="text-to-image", scheduler="DDIM") as pipeline:
        stock.scheduler = type(pipeline.stock.scheduler).from_config(pipeline.stock.scheduler.config)
    stock.load_lora_weights(file.parent, weight_name=file.name, local_files_only=True)
    expected = np.asarray(drawn(stock), dtype=int)
    assert np.abs(np.asarray(served, dtype=int) - expected).max() <= 1
    assert np.abs(np.asarray(seen, dtype=int) - expected).max() <= 1
    assert np.abs(np.asarray(bare, dtype=int) - expected).max() > 8


def test_pictures_between_two_steps_are_those_of_the_bare_model_and_change_no_step(runtime):
    with runtime.borrow("tiny", task="text-to-image") as pipeline:
        bare = drawn(pipeline)
    alone = losses_of(runtime, PLAN, 3)
    with runtime.trainer("tiny", PLAN) as trainer:
        trainer.prepare(pictures(), CAPTIONS)
        losses = []
        for number in range(1, 4):
            losses.append(trainer.step(number))
            with runtime.borrow("tiny", task="text-to-image") as pipeline:
                assert drawn(pipeline).tobytes() == bare.tobytes()
    assert losses == alone
    with runtime.borrow("tiny", task="text-to-image") as pipeline:
        assert drawn(pipeline).tobytes() == bare.tobytes()


def test_buckets_keep_shapes_and_batches_are_of_one_shape():
    sizes = buckets(512, 64)
    assert (512, 512) in sizes and all(0.8 < width * height / 512**2 < 1.25 for width, height in sizes)
    cut, numbers = cut_to_bucket(Image.new("RGB", (1000, 500)), sizes)
    assert abs(cut.width / cut.height - 2) < 0.3 and numbers[:2] == (500, 1000) and numbers[4:] == cut.size[::-1]
    shapes = [torch.zeros(8, 8, 8 + 4 * (number % 2)) for number in range(10)]
    batches = Batches([Sample(shape, str(number), ()) for number, shape in enumerate(shapes)], 2, 7)
    seen = [batches.batch(number) for number in range(6)]
    assert sorted(sample.caption for batch in seen for sample in batch) == sorted(map(str, range(10)))
    assert all(len({sample.moments.shape for sample in batch}) == 1 for batch in seen)
    assert [s.caption for s in batches.batch(6)] != [] and batches.batch(0) == seen[0]
