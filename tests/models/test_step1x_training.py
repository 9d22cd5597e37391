"""A LoRA that learns on Step1X-Edit and is worn by it, against plain diffusers and peft; FLUX LoRAs from elsewhere."""

import dataclasses
import json

import diffusers
import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from diffusers.training_utils import compute_density_for_timestep_sampling
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from app.core.fields import WeightedModel
from app.core.model_offload import Offload
from app.errors import InvalidRequest, OutOfMemory
from app.models.adapters import Addition
from app.models.runtime import open_runtime
from app.models.step1x import load_transformer
from app.models.training_dataset import Batches, Sample, buckets, cut_to_bucket
from app.models.transformer_loras import check_fit, read
from tests.models import tiny_step1x, trained_models
from tests.models.trained_models import PLAN, pictures
from tests.parity.cases import DATA

library, runtime = trained_models.library, trained_models.runtime
CAPTIONS = ["make the car green", 'write "sky" on it', "make the car green"]
TASK = "step1x-edit"
LAYERS = ["to_k", "to_q", "to_v", "to_out.0"]


@pytest.fixture(scope="module", params=["1.1", "1.2"])
def version(request):
    return request.param


@pytest.fixture(scope="module")
def folder(version, tmp_path_factory):
    case = json.loads((DATA / "step1x_edit" / "case.json").read_text("utf-8"))
    path = tmp_path_factory.mktemp("published") / "tiny"
    return tiny_step1x.make_folder(path, case["keys"], case["config"], version=version)


def prepare(trainer):
    trainer.prepare(pictures(), CAPTIONS, sources=pictures(4))


def network_of(folder):
    """The connector and diffusers' own FLUX, outside of the service."""
    files = sorted((folder / "transformer").glob("*.safetensors"))
    return load_transformer(files, folder / "transformer").eval().requires_grad_(False)


def plain_training(runtime, folder, version, plan, steps):
    """The same training by hand: plain diffusers and peft, on what a dataset of these pictures is."""
    network, vae = network_of(folder), diffusers.AutoencoderKL.from_pretrained(folder / "vae", local_files_only=True)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
    torch.manual_seed(plan.seed)
    network.flux.add_adapter(LoraConfig(r=4, lora_alpha=8.0, init_lora_weights="gaussian", target_modules=LAYERS))
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=plan.learning_rate, betas=(0.9, 0.999), weight_decay=1e-4)
    cut = [[cut_to_bucket(image, buckets(64, 16))[0] for image in pictures(seed)] for seed in (3, 4)]
    with torch.no_grad(), runtime.editor("tiny", task=TASK) as editor:
        texts = [editor.encode(caption, image) for caption, image in zip(CAPTIONS, cut[1], strict=True)]
        pixels = [[torch.tensor(np.array(one)).permute(2, 0, 1)[None] / 127.5 - 1 for one in row] for row in cut]
        targets, sources = ([vae.encode(one).latent_dist for one in row] for row in pixels)
    beside = torch.tensor([1.0, 1.0, 1.0] if version == "1.1" else [1.0, 0.0, 0.0])
    shapes = [Sample(one.parameters[0], str(number), ()) for number, one in enumerate(targets)]
    order, losses, gradients = Batches(shapes, 1, plan.seed), [], None
    for step in range(steps):
        (number,) = [int(sample.caption) for sample in order.batch(step)]
        chance = torch.Generator().manual_seed(plan.seed * 2 + step * 7919)
        latents = (targets[number].sample(chance) - 0.1159) * 0.3611
        noise = torch.randn(latents.shape, generator=chance)
        index = (compute_density_for_timestep_sampling("logit_normal", 1, 0.0, 1.0, generator=chance) * 1000).long()
        source = (sources[number].sample(chance) - 0.1159) * 0.3611
        sigma, time = scheduler.sigmas[index], scheduler.timesteps[index] / 1000
        height, width = latents.shape[2:]
        noisy, seen, target = (
            FluxPipeline._pack_latents(one, 1, 4, height, width)
            for one in (sigma * noise + (1 - sigma) * latents, source, noise - latents)
        )
        ids = FluxPipeline._prepare_latent_image_ids(1, height // 2, width // 2, "cpu", torch.float32)
        words = texts[number]
        tokens, pooled = network.connector(words["encoder_hidden_states"], time, words["prompt_embeds_mask"])
        if version == "1.2":
            tokens = tokens + network.text_token_mapping(words["text_embeddings"]) * words["text_mask"][..., None]
        told = network.flux(
            torch.cat([noisy, seen], 1), tokens, pooled, timestep=time, img_ids=torch.cat([ids, ids + beside]),
            txt_ids=words["txt_ids"],
        ).sample[:, : noisy.shape[1]]  # fmt: skip
        loss = torch.nn.functional.mse_loss(told, target)
        loss.backward()
        gradients = gradients or {
            name: p.grad.clone() for name, p in network.flux.named_parameters() if p.requires_grad
        }
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step(), optimizer.zero_grad()
        losses.append(loss.item())
    return losses, gradients, get_peft_model_state_dict(network.flux)


def test_gradients_and_steps_are_those_of_plain_diffusers_and_peft(runtime, folder, version):
    losses, gradients, matrices = plain_training(runtime, folder, version, PLAN, 4)
    before = {name: tensor.clone() for name, tensor in opened_of(runtime).transformer.state_dict().items()}
    with runtime.trainer("tiny", PLAN) as trainer:
        prepare(trainer)
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
    require_same(opened_of(runtime).transformer.state_dict(), before)


def losses_of(runtime, plan, steps):
    with runtime.trainer("tiny", plan) as trainer:
        prepare(trainer)
        return [trainer.step(number) for number in range(1, steps + 1)]


def test_checkpointing_and_resuming_change_nothing_and_bf16_little(runtime, tmp_path):
    whole = losses_of(runtime, PLAN, 4)
    assert len(set(whole)) == 4
    deep = dataclasses.replace(PLAN, gradient_checkpointing=True)
    assert losses_of(runtime, deep, 2) == pytest.approx(whole[:2], abs=1e-5)
    rough = losses_of(runtime, dataclasses.replace(PLAN, mixed_precision="bf16"), 2)
    assert rough != whole[:2] and rough == pytest.approx(whole[:2], rel=0.05)
    with runtime.trainer("tiny", PLAN) as trainer:
        prepare(trainer)
        first = [trainer.step(number) for number in (1, 2)]
        trainer.save(tmp_path)
    with runtime.trainer("tiny", PLAN) as trainer:
        prepare(trainer)
        trainer.restore(tmp_path)
        assert first + [trainer.step(number) for number in (3, 4)] == whole


def test_a_row_of_a_batch_does_not_feel_its_neighbour(runtime):
    texts = ["blue", "make the car green and the sky blue", "grey"]
    with runtime.trainer("tiny", dataclasses.replace(PLAN, train_batch_size=3)) as trainer:
        squares = [pictures(seed)[0] for seed in (3, 6, 7)]
        trainer.prepare(squares, texts, sources=squares[::-1])
        samples = {sample.caption: sample for sample in trainer._samples.batch(0)}

        def losses(*captions):
            batch = [samples[caption] for caption in captions]
            embeds = [trainer._texts[sample.read] for sample in batch]
            with trainer._working(), torch.no_grad():
                return trainer.lessons.losses(batch, embeds, torch.Generator().manual_seed(1), torch.float32)

        beside_long, beside_short = losses("blue", texts[1]), losses("blue", "grey")
    assert float(beside_long[0]) == float(beside_short[0]) and beside_long[1] != beside_short[1]


def test_it_learns_from_pairs_alone(runtime):
    with runtime.trainer("tiny", PLAN) as trainer, pytest.raises(InvalidRequest, match="pairs alone"):
        trainer.prepare(pictures(), CAPTIONS)


def draw(runtime, **loras):
    """The picture with these LoRAs by id and weight, as an array."""
    wishes = [WeightedModel(model=id, weight=weight) for id, weight in loras.items()]
    with runtime.editor("tiny", task=TASK, loras=wishes) as editor:
        return np.asarray(editor(**arguments()).images[0], dtype=int)


def arguments():
    told = {"prompt": CAPTIONS[0], "num_inference_steps": 2, "guidance_scale": 2.0, "image": pictures(4)[0]}
    return told | {"generator": torch.Generator().manual_seed(5), "size_level": 64}


def opened_of(runtime):
    return next(iter(runtime._cache.models().values()))


def require_same(found, expected):
    """The same tensors under the same names, to the bit."""
    assert list(found) == list(expected) and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.fixture(scope="module")
def learned(runtime, library, tmp_path_factory):
    """The file of a short training, registered, with the picture that its trainer drew at the end."""
    file = tmp_path_factory.mktemp("learned") / "learned.safetensors"
    with runtime.trainer("tiny", PLAN) as trainer:
        prepare(trainer)
        for number in range(1, 5):
            trainer.step(number)
        trainer.write(file, {"modelspec.trigger_phrase": "style"})
        told = {name: value for name, value in arguments().items() if name != "size_level"}
        seen = trainer.draw(scheduler="Euler", width=64, height=64, **told)
        matrices = trainer.matrices()
    return file, library.add(file), np.asarray(seen, dtype=int), matrices


def test_the_file_says_what_it_is_and_plain_diffusers_reads_it(learned, folder):
    file, row, _, matrices = learned
    assert (row.spec.kind, row.spec.family) == ("lora", "flux")
    assert row.spec.options == {"format": "diffusers", "trigger": "style"}
    with safe_open(file, "pt") as weights:
        told = weights.metadata()
    assert told["modelspec.architecture"] == "Step1X-Edit/lora" and told["ss_base_model_version"] == "step1x_edit"
    assert (told["ss_network_dim"], told["ss_network_alpha"]) == ("4", "4"), "alpha is in the matrices"
    assert json.loads(told["ss_network_args"]) == {"lora_alpha": 8.0}
    assert set(load_file(file)) == set(matrices)
    flux = network_of(folder).flux
    rest = dict.fromkeys(("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    stock = FluxPipeline(transformer=flux, **rest)
    stock.load_lora_weights(file.parent, weight_name=file.name, local_files_only=True)
    layer = flux.single_transformer_blocks[0].attn.to_q
    places = torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(1))
    name = "transformer.single_transformer_blocks.0.attn.to_q"
    down, up = matrices[f"{name}.lora_A.weight"], matrices[f"{name}.lora_B.weight"]
    assert torch.allclose(layer(places), layer.base_layer(places) + 2 * places @ down.T @ up.T, atol=1e-5)
    assert not torch.allclose(layer(places), layer.base_layer(places), atol=1e-3)


def test_it_changes_the_picture_by_its_weight_and_comes_off_to_the_bit(runtime, learned):
    _, row, seen, _ = learned
    bare = draw(runtime)
    state = {name: tensor.clone() for name, tensor in opened_of(runtime).transformer.state_dict().items()}
    whole = draw(runtime, **{row.spec.id: 1.0})
    assert np.abs(whole - seen).max() <= 1, "the service draws what the trainer drew"
    assert np.abs(whole - bare).max() > 8
    assert np.abs(draw(runtime, **{row.spec.id: 0.5}) - whole).max() > 0
    assert np.array_equal(draw(runtime, **{row.spec.id: 0.0}), bare)
    assert np.array_equal(draw(runtime), bare), "the layers stayed on"
    require_same(opened_of(runtime).transformer.state_dict(), state)


def kohya(name, tensors, alpha):
    """Matrices of one original layer under kohya's names."""
    return {f"{name}.lora_{side}.weight": tensor for side, tensor in tensors.items()} | {
        f"{name}.alpha": torch.tensor(float(alpha))
    }


def test_files_of_the_common_layouts_draw_alike(runtime, library, tmp_path):
    """One LoRA in the names of kohya and XLabs, in diffusers' with alphas beside, and in diffusers' alone."""
    noise = torch.Generator().manual_seed(8)
    down, qkv, up = (torch.randn(shape, generator=noise) for shape in ((4, 64), (192, 4), (64, 4)))
    deep = torch.randn(4, 320, generator=noise)
    original = kohya("lora_unet_double_blocks_0_img_attn_qkv", {"down": down, "up": qkv}, 2)
    files = {"kohya": original | kohya("lora_unet_single_blocks_1_linear2", {"down": deep, "up": up}, 2)}
    files["xlabs"] = {
        f"{layer}.{side}.weight": tensor
        for layer, pair in (("double_blocks.0.processor.qkv_lora1", (down, qkv / 2)),
                            ("single_blocks.1.processor.proj_lora", (deep, up / 2)))
        for side, tensor in zip(("down", "up"), pair, strict=True)
    }  # fmt: skip
    names = [f"transformer.transformer_blocks.0.attn.to_{part}" for part in "qkv"]
    pairs = {name: (down, one) for name, one in zip(names, qkv.chunk(3), strict=True)}
    pairs["transformer.single_transformer_blocks.1.proj_out"] = deep, up
    plain = {f"{name}.lora_A.weight": pair[0] for name, pair in pairs.items()}
    ups = {f"{name}.lora_B.weight": pair[1] for name, pair in pairs.items()}
    files["alphas"] = plain | ups | {f"{name}.alpha": torch.tensor(2.0) for name in pairs}
    files["plain"] = plain | {name: tensor / 2 for name, tensor in ups.items()}
    drawn = {}
    for name, state in files.items():
        file = tmp_path / f"{name}.safetensors"
        save_file({key: tensor.contiguous().clone() for key, tensor in state.items()}, file)
        row = library.add(file)
        assert (row.spec.family, row.spec.options["format"]) == ("flux", "kohya" if name == "kohya" else "diffusers")
        drawn[name] = draw(runtime, **{row.spec.id: 1.0})
    bare = draw(runtime)
    assert np.abs(drawn["plain"] - bare).max() > 8
    assert all(np.abs(picture - drawn["plain"]).max() <= 1 for picture in drawn.values())


def test_what_does_not_fit_is_refused_and_leaves_nothing(runtime, library, tmp_path):
    name = "transformer.single_transformer_blocks.0.attn.to_q"
    narrow = {f"{name}.lora_A.weight": torch.zeros(4, 32), f"{name}.lora_B.weight": torch.zeros(64, 4)}
    foreign = {f"{name}.lora_A.weight": torch.zeros(4, 64), f"{name}.lora_B.weight": torch.zeros(64, 4)}
    foreign |= {"x_embedder.lora_A.weight": torch.zeros(4, 16), "x_embedder.lora_B.weight": torch.zeros(64, 4)}
    bare = draw(runtime)
    for stem, state in {"narrow": narrow, "foreign": foreign}.items():
        save_file(state, tmp_path / f"{stem}.safetensors")
        library.add(tmp_path / f"{stem}.safetensors")
        with pytest.raises(InvalidRequest, match="not made for this model"):
            draw(runtime, **{stem: 1.0})
    assert np.array_equal(draw(runtime), bare)


@pytest.mark.parametrize("version", ["1.2"], indirect=True)
def test_kohya_files_of_published_size_fit_the_published_network(version, tmp_path):
    """Every layer that kohya's trainer has of FLUX: diffusers splits them by FLUX.1's own widths."""
    flux = {"img_attn_qkv": (3072, 9216), "img_mlp_0": (3072, 12288), "txt_attn_proj": (3072, 3072)}
    state = {}
    for prefix, layers in (("double_blocks_18", flux), ("single_blocks_37", {"linear1": (3072, 21504)})):
        for layer, (wide, high) in layers.items():
            tensors = {"down": torch.ones(4, wide), "up": torch.ones(high, 4)}
            state |= kohya(f"lora_unet_{prefix}_{layer}", tensors, 4)
    save_file(state, tmp_path / "kohya.safetensors")
    with torch.device("meta"):
        network = diffusers.FluxTransformer2DModel(guidance_embeds=False)
    rest = dict.fromkeys(("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    addition = Addition("kohya", tmp_path / "kohya.safetensors")
    found, _ = read(FluxPipeline(transformer=network, **rest), addition)
    assert len(found) == 2 * (3 + 1 + 1 + 4)
    check_fit(network, found, addition)


@pytest.mark.parametrize("precision", ["float8", "int8"])
def test_what_stands_in_few_bits_is_drawn_with_and_not_trained_on(library, learned, precision):
    _, row, _, _ = learned
    opened = open_runtime(device="cpu", library=library, precision=precision)
    try:
        with pytest.raises(InvalidRequest, match="fewer bits"), opened.trainer("tiny", PLAN):
            pass
        bare = draw(opened)
        assert np.abs(draw(opened, **{row.spec.id: 1.0}) - bare).max() > 8
        assert np.array_equal(draw(opened), bare)
    finally:
        opened.close()


@pytest.mark.parametrize("strategy", ["model_cpu", "streamed", "sequential_cpu"])
def test_weights_that_visit_the_device_wear_it_too_and_are_not_trained_on(library, runtime, learned, strategy):
    _, row, _, _ = learned
    expected = {weight: draw(runtime, **{row.spec.id: weight}) for weight in (1.0, 0.0)}
    other = open_runtime(device="cpu", library=library, precision="float32")
    # Past the door that keeps these to GPUs: here the hooks move weights from RAM to RAM.
    other.device.offload = Offload(strategy)
    try:
        for weight, picture in expected.items():
            assert np.array_equal(draw(other, **{row.spec.id: weight}), picture)
        assert opened_of(other).placement.strategy.value == strategy
        with pytest.raises(OutOfMemory, match="whole model"), other.trainer("tiny", PLAN) as trainer:
            prepare(trainer)
        assert np.array_equal(draw(other), expected[0.0])
    finally:
        other.close()
