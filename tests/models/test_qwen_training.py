"""A LoRA that learns on Qwen-Image-Edit, with and without source pictures, against plain diffusers and peft."""

import dataclasses

import diffusers
import numpy as np
import pytest
import torch
from diffusers.training_utils import compute_density_for_timestep_sampling
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open

from app.core.fields import WeightedModel
from app.errors import InvalidRequest
from app.models.runtime import open_runtime
from app.models.training_dataset import Batches, Sample, buckets, cut_to_bucket
from tests.models import tiny_qwen, trained_models
from tests.models.trained_models import PLAN, pictures

library, runtime = trained_models.library, trained_models.runtime
AREA = 64 * 64
CAPTIONS = ["make the car green", "make the sky blue", "make the car green"]
PAIRED = [False, True]


@pytest.fixture(scope="module", autouse=True)
def small_pictures():
    """A smaller area for the pipelines than a million pixels."""
    patch = pytest.MonkeyPatch()
    sized = tiny_qwen.smaller(AREA)
    place = "diffusers.pipelines.qwenimage.pipeline_qwenimage_edit"
    patch.setattr(f"{place}.calculate_dimensions", lambda *told: (*sized(*told), None))
    patch.setattr(f"{place}_plus.calculate_dimensions", sized)
    yield
    patch.undo()


@pytest.fixture(scope="module", params=["edit", "plus"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    name = "tiny-2511" if kind == "plus" else "tiny"
    path = tmp_path_factory.mktemp("published") / name
    return tiny_qwen.make_folder(path, plus=kind == "plus", zero_cond_t=kind == "plus")


def prepare(trainer, paired):
    trainer.prepare(pictures(), CAPTIONS, sources=pictures(4) if paired else ())


def stock_pipeline(folder, kind, paired):
    """What draws with such a LoRA: the version's own pipeline, or Qwen-Image's where there is no source."""
    own = diffusers.QwenImageEditPlusPipeline if kind == "plus" else diffusers.QwenImageEditPipeline
    pipe = own.from_pretrained(folder, local_files_only=True)
    if not paired:
        parts = {name: part for name, part in pipe.components.items() if name != "processor"}
        pipe = diffusers.QwenImagePipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def shown_to(pipe, kind, image):
    """The source's normalised latents [1, channels, 1, h, w], and the picture that is read."""
    width, height = tiny_qwen.smaller(AREA)(AREA, image.width / image.height)
    shown = pipe.image_processor.resize(image, height, width)
    latents = pipe.vae.encode(pipe.image_processor.preprocess(shown, height, width)[:, :, None]).latent_dist.mode()
    return latents, [shown] if kind == "plus" else shown


def plain_training(folder, kind, plan, steps, paired):
    """The same training by hand: plain diffusers and peft, on what a dataset of these pictures is."""
    pipe = stock_pipeline(folder, kind, paired)
    network, scheduler = pipe.transformer.requires_grad_(False), pipe.scheduler
    values = (pipe.vae.config[name] for name in ("latents_mean", "latents_std"))
    mean, deviation = (torch.tensor(one)[:, None, None, None] for one in values)
    torch.manual_seed(plan.seed)
    layers = ["to_k", "to_q", "to_v", "to_out.0"]
    network.add_adapter(LoraConfig(r=4, lora_alpha=8.0, init_lora_weights="gaussian", target_modules=layers))
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=plan.learning_rate, betas=(0.9, 0.999), weight_decay=1e-4)
    cuts = [cut_to_bucket(image, buckets(plan.resolution, 16))[0] for image in pictures()]
    with torch.no_grad():
        pixels = [torch.tensor(np.array(cut)).permute(2, 0, 1)[None, :, None] / 127.5 - 1 for cut in cuts]
        spread = [pipe.vae.encode(one).latent_dist for one in pixels]
        sources = [shown_to(pipe, kind, image) for image in pictures(4)] if paired else [None] * 3
    shapes = [one.parameters[0, :, 0] for one in spread]
    if paired:
        # Rows of a batch have sources of one shape; alone in it, what counts is the order in which they come.
        shapes = [torch.zeros(*one.shape, *source[0].shape[3:]) for one, source in zip(shapes, sources, strict=True)]
    order = Batches([Sample(one, str(number), ()) for number, one in enumerate(shapes)], 1, plan.seed)
    losses, gradients = [], None
    for step in range(steps):
        (number,) = [int(sample.caption) for sample in order.batch(step)]
        chance = torch.Generator().manual_seed(plan.seed * 2 + step * 7919)
        latents = (spread[number].sample(chance) - mean) * (1 / deviation)
        noise = torch.randn(latents.shape, generator=chance)
        density = compute_density_for_timestep_sampling("logit_normal", 1, 0.0, 1.0, generator=chance)
        index = (density * 1000).long()
        sigma, time = scheduler.sigmas[index], scheduler.timesteps[index]
        height, width = latents.shape[3:]
        places = [(1, height // 2, width // 2)]
        more, packed = {}, pipe._pack_latents(sigma * noise + (1 - sigma) * latents, 1, 4, height, width)
        seen = packed
        if paired:
            source, read = sources[number]
            more, down, across = {"image": read}, *source.shape[3:]
            places.append((1, down // 2, across // 2))
            seen = torch.cat([packed, pipe._pack_latents((source - mean) / deviation, 1, 4, down, across)], dim=1)
        with torch.no_grad():
            text, _ = pipe.encode_prompt(CAPTIONS[number], device="cpu", **more)
        told = network(seen, text, timestep=time / 1000, img_shapes=[places]).sample[:, : packed.shape[1]]
        loss = torch.nn.functional.mse_loss(told, pipe._pack_latents(noise - latents, 1, 4, height, width))
        loss.backward()
        gradients = gradients or {name: p.grad.clone() for name, p in network.named_parameters() if p.requires_grad}
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step(), optimizer.zero_grad()
        losses.append(loss.item())
    return losses, gradients, get_peft_model_state_dict(network)


@pytest.mark.parametrize("paired", PAIRED)
def test_gradients_and_steps_are_those_of_plain_diffusers_and_peft(runtime, folder, kind, paired):
    losses, gradients, matrices = plain_training(folder, kind, PLAN, 4, paired)
    with runtime.trainer("tiny", PLAN) as trainer:
        prepare(trainer, paired)
        with trainer._working():
            trainer.loss(0).backward()
        assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 1e-3
        for name, matrix in trainer._named_matrices():
            expected = gradients[name.removeprefix("transformer.").replace(".weight", ".default.weight")]
            assert torch.allclose(matrix.grad, expected, atol=1e-5), name
        trainer.optimiser.zero_grad()
        assert [trainer.step(number) for number in range(1, 5)] == pytest.approx(losses, abs=1e-5)
        found = trainer.matrices()
    assert {name.removeprefix("transformer.") for name in found} == set(matrices)
    for name, matrix in matrices.items():
        assert torch.allclose(found[f"transformer.{name}"], matrix, atol=1e-5), name


def arguments(paired):
    guided = {"prompt": "make the car green", "num_inference_steps": 2, "width": 64, "height": 64}
    return guided | ({"image": pictures(4)[0]} if paired else {}) | {"generator": torch.Generator().manual_seed(5)}


@pytest.mark.parametrize("paired", PAIRED)
def test_the_file_draws_the_same_in_the_stock_pipeline_the_service_and_the_trainer(
    runtime, library, folder, kind, tmp_path, paired
):
    file = tmp_path / f"learned-{kind}-{paired}.safetensors"
    with runtime.trainer("tiny", PLAN) as trainer:
        prepare(trainer, paired)
        for number in range(1, 4):
            trainer.step(number)
        trainer.write(file, {"modelspec.trigger_phrase": "style"})
        seen = trainer.draw(scheduler="Euler", guidance_scale=2.0, **arguments(paired))
    row = library.add(file)
    assert (row.spec.kind, row.spec.family, row.spec.options["trigger"]) == ("lora", "qwen-image", "style")
    with safe_open(file, "pt") as weights:
        names, told = set(weights.keys()), weights.metadata()
    assert told["ss_network_dim"] == "4" and told["ss_network_alpha"] == "8"
    assert all(name.startswith("lora_unet_transformer_blocks_") for name in names)
    assert {name.partition(".")[2] for name in names} == {"lora_down.weight", "lora_up.weight", "alpha"}
    stock = stock_pipeline(folder, kind, paired)
    guided = {"true_cfg_scale": 2.0, "negative_prompt": " "}
    bare = np.asarray(stock(**guided, **arguments(paired)).images[0], dtype=int)
    stock.load_lora_weights(file.parent, weight_name=file.name, local_files_only=True)
    expected = np.asarray(stock(**guided, **arguments(paired)).images[0], dtype=int)
    assert np.abs(np.asarray(seen, dtype=int) - expected).max() <= 1
    assert np.abs(bare - expected).max() > 8
    wish = WeightedModel(model=row.spec.id)
    more = arguments(paired)
    image = [more.pop("image")] if paired else []
    with runtime.editor("tiny", task="qwen-edit", loras=[wish]) as editor:
        served = editor(true_cfg_scale=2.0, image=image, **more).images[0]
    assert np.abs(np.asarray(served, dtype=int) - expected).max() <= 1
    with runtime.editor("tiny", task="qwen-edit") as editor:
        again = editor(true_cfg_scale=2.0, image=image, **(more | arguments(False))).images[0]
    assert np.abs(np.asarray(again, dtype=int) - bare).max() <= 1, "the learned layers stayed on"


def losses_of(runtime, plan, steps, paired=True):
    with runtime.trainer("tiny", plan) as trainer:
        prepare(trainer, paired)
        return [trainer.step(number) for number in range(1, steps + 1)]


def test_checkpointing_and_resuming_change_nothing_and_bf16_little(runtime, tmp_path):
    whole = losses_of(runtime, PLAN, 4)
    assert len(set(whole)) == 4
    deep = dataclasses.replace(PLAN, gradient_checkpointing=True)
    assert losses_of(runtime, deep, 2) == pytest.approx(whole[:2], abs=1e-5)
    rough = losses_of(runtime, dataclasses.replace(PLAN, mixed_precision="bf16"), 2)
    assert rough != whole[:2] and rough == pytest.approx(whole[:2], rel=0.05)
    with runtime.trainer("tiny", PLAN) as trainer:
        prepare(trainer, True)
        first = [trainer.step(number) for number in (1, 2)]
        trainer.save(tmp_path)
    with runtime.trainer("tiny", PLAN) as trainer:
        prepare(trainer, True)
        trainer.restore(tmp_path)
        assert first + [trainer.step(number) for number in (3, 4)] == whole


@pytest.mark.parametrize("paired", PAIRED)
def test_a_row_of_a_batch_feels_neither_its_padding_nor_its_neighbour(runtime, paired):
    texts = ["blue", "make the car green and the sky blue", "grey"]
    with runtime.trainer("tiny", dataclasses.replace(PLAN, train_batch_size=3)) as trainer:
        squares = [pictures(seed)[0] for seed in (3, 6, 7)]
        trainer.prepare(squares, texts, sources=squares[::-1] if paired else ())
        samples = {sample.caption: sample for sample in trainer._samples.batch(0)}

        def losses(*captions):
            batch = [samples[caption] for caption in captions]
            embeds = [trainer._texts[sample.read] for sample in batch]
            with trainer._working(), torch.no_grad():
                return trainer.lessons.losses(batch, embeds, torch.Generator().manual_seed(1), torch.float32)

        beside_long, beside_short = losses("blue", texts[1]), losses("blue", "grey")
        longest = max(text.embeds.shape[1] for text in trainer._texts.values())
        assert trainer._texts[samples["blue"].read].embeds.shape[1] < longest
    assert beside_long[0] == pytest.approx(float(beside_short[0]), rel=1e-5)
    assert beside_long[1] != beside_short[1]


def test_what_stands_in_few_bits_is_not_trained_on(library, folder):
    opened = open_runtime(device="cpu", library=library, precision="float8")
    try:
        with pytest.raises(InvalidRequest, match="fewer bits"), opened.trainer("tiny", PLAN):
            pass
    finally:
        opened.close()
