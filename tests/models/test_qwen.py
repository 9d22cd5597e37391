"""Qwen-Image-Edit opened: GGUF and single files, fewer bits, taking turns on a device, LoRAs on all of them."""

import json
import re
from pathlib import Path

import diffusers
import gguf
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from app.core.fields import WeightedModel
from app.core.model_offload import Offload, recommend
from app.errors import InvalidRequest
from app.models import quantisation
from app.models.catalog import CATALOG
from app.models.catalog_qwen import PARTS
from app.models.device import TorchDevice
from app.models.inspect_file import inspect
from app.models.library import ModelLibrary
from app.models.offloading import stored_bytes, weight_bytes
from app.models.qwen_editing import schedule_of
from app.models.qwen_network import is_few_bits, load_single_file
from app.models.runtime import open_runtime
from app.models.tiers import SHARE_FOR_WORK, needed_bytes
from benchmarks.editing import bytes_of, computed, full_size, layer_bytes, reached, sizes_in
from tests.models import tiny_qwen, trained_models

runtime = trained_models.runtime  # of this module's own library

SIDE = 128
PHOTO = Image.effect_mandelbrot((SIDE, SIDE), (-2, -1.2, 0.8, 1.2), 60).convert("RGB")
FILES = ("qwen-image-edit-q8.gguf", "qwen-image-edit-2511-q4.gguf", "qwen_image_edit_bf16.safetensors")
KINDS = {
    "qwen-image-edit-q8.gguf": gguf.GGMLQuantizationType.Q8_0,
    "qwen-image-edit-2511-q4.gguf": gguf.GGMLQuantizationType.Q4_0,
}


def write_gguf(file, network, kind):
    """As the community writes them: linear layers in few bits, the rest in 32; names are diffusers' own."""
    writer = gguf.GGUFWriter(file, "qwen_image")
    for name, tensor in network.state_dict().items():
        values = tensor.float().numpy()
        is_linear = values.ndim == 2 and name.startswith("transformer_blocks.")
        if is_linear:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module", autouse=True)
def small_pictures():
    """A smaller area for the pipeline than a million pixels."""
    patch = pytest.MonkeyPatch()
    sized = tiny_qwen.smaller(SIDE * SIDE)
    place = "diffusers.pipelines.qwenimage.pipeline_qwenimage_edit"
    patch.setattr(f"{place}.calculate_dimensions", lambda *told: (*sized(*told), None))
    patch.setattr(f"{place}_plus.calculate_dimensions", sized)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A whole folder, the same without its network, and the network as single files."""
    root = tmp_path_factory.mktemp("published")
    folder = tiny_qwen.make_folder(root / "tiny-qwen")
    shared = root / "shared"
    for part in ("processor", "scheduler", "text_encoder", "tokenizer", "vae"):
        (shared / part).mkdir(parents=True)
        for file in (folder / part).iterdir():
            (shared / part / file.name).hardlink_to(file)
    (shared / "model_index.json").hardlink_to(folder / "model_index.json")
    network = diffusers.QwenImageTransformer2DModel.from_pretrained(folder / "transformer")
    for name, kind in KINDS.items():
        write_gguf(root / name, network, kind)
    prefixed = {f"model.diffusion_model.{name}": tensor for name, tensor in network.state_dict().items()}
    save_file(prefixed, root / FILES[2])
    width = tiny_qwen.HEADS * tiny_qwen.HEAD
    noise = torch.Generator().manual_seed(8)
    lora = {
        f"transformer.transformer_blocks.0.attn.to_q.lora_{side}.weight": torch.randn(shape, generator=noise) / 3
        for side, shape in (("A", (4, width)), ("B", (width, 4)))
    }
    save_file(lora, root / "style.safetensors")
    narrow = {name: tensor[:, : width // 2] if "lora_A" in name else tensor for name, tensor in lora.items()}
    save_file({name: tensor.contiguous() for name, tensor in narrow.items()}, root / "narrow.safetensors")
    return root


@pytest.fixture(scope="module")
def library(published, tmp_path_factory):
    library = ModelLibrary(tmp_path_factory.mktemp("home"))
    library.add(published / "tiny-qwen")
    library.add(published / "shared")
    for name in (*FILES, "style.safetensors", "narrow.safetensors"):
        library.add(published / name)
    return library


def draw(runtime, model="tiny-qwen", loras=()):
    wishes = [WeightedModel(model=id) for id in loras]
    with runtime.editor(model, task="qwen-edit", loras=wishes) as editor:
        picture = editor(
            prompt="make the car green", image=[PHOTO], num_inference_steps=2, true_cfg_scale=1.0,
            generator=torch.Generator().manual_seed(3),
        ).images[0]  # fmt: skip
    return np.asarray(picture, np.int16)


def opened_of(runtime):
    return next(iter(runtime._cache.models().values()))


def test_files_are_recognised_by_their_names_and_shapes(published, library):
    rows = {name: library.get(name.rpartition(".")[0]) for name in FILES}
    assert [row.path.suffix for row in rows.values()] == [".gguf", ".gguf", ".safetensors"]
    assert {row.spec.parts for row in rows.values()} == {(PARTS,)}
    assert rows[FILES[1]].spec.tasks == ("qwen-edit", "qwen-edit-plus") and rows[FILES[0]].spec.tasks == ("qwen-edit",)
    assert rows[FILES[1]].spec.options["zero_cond_t"] == "1"
    assert library.get(PARTS).installed and library.get(PARTS).bytes_on_disk
    assert inspect(published / "style.safetensors").family == "qwen-image"


def test_what_is_no_editor_is_refused_in_a_sentence(published, tmp_path):
    plain = tmp_path / "qwen-image-Q4.gguf"
    plain.hardlink_to(published / FILES[1])
    with pytest.raises(InvalidRequest, match="does not say that it edits"):
        inspect(plain)
    cut = tmp_path / "qwen-image-edit-cut.gguf"
    cut.write_bytes((published / FILES[1]).read_bytes()[:-5000])
    with pytest.raises(InvalidRequest, match="cut short"):
        inspect(cut)
    (tmp_path / "noise.gguf").write_bytes(b"GGUF" + bytes(range(200)))
    with pytest.raises(InvalidRequest, match="not a sound"):
        inspect(tmp_path / "noise.gguf")
    other = gguf.GGUFWriter(tmp_path / "llama.gguf", "llama")
    other.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    other.write_header_to_file()
    other.write_kv_data_to_file()
    other.write_tensors_to_file()
    other.close()
    with pytest.raises(InvalidRequest, match="no Qwen-Image network"):
        inspect(tmp_path / "llama.gguf")
    scaled = {"transformer_blocks.0.img_mod.1.weight": torch.zeros(2, 2), "img_in.scale_weight": torch.ones(1)}
    save_file(scaled, tmp_path / "qwen_image_edit_fp8_scaled.safetensors")
    with pytest.raises(InvalidRequest, match="scaled eight-bit"):
        inspect(tmp_path / "qwen_image_edit_fp8_scaled.safetensors")


@pytest.mark.parametrize("name", KINDS)
def test_a_gguf_file_stays_in_its_few_bits_and_computes_what_it_says(published, name):
    """Against the network with the very numbers that the file's bits stand for: the round trip loses nothing else."""
    whole = diffusers.QwenImageTransformer2DModel.from_pretrained(published / "tiny-qwen" / "transformer")
    with torch.no_grad():
        for key, tensor in whole.named_parameters():
            if tensor.ndim == 2 and key.startswith("transformer_blocks."):
                bits = gguf.quants.quantize(tensor.numpy(), KINDS[name])
                tensor.copy_(torch.from_numpy(gguf.quants.dequantize(bits, KINDS[name])))
    few = load_single_file(published / name, dtype=torch.float32, zero_cond_t=False)
    assert is_few_bits(few) and not is_few_bits(whole)
    linear = [
        key for key in whole.state_dict() if key.startswith("transformer_blocks.") and key.endswith("to_q.weight")
    ]
    parts = dict(few.named_parameters())
    share = {"qwen-image-edit-q8.gguf": 34 / 32, "qwen-image-edit-2511-q4.gguf": 18 / 32}[name]
    width = tiny_qwen.HEADS * tiny_qwen.HEAD
    assert [stored_bytes(parts[key]) for key in linear] == [int(width * width * share)] * len(linear)
    torch.manual_seed(0)
    told = {
        "hidden_states": torch.randn(1, 32, 16), "encoder_hidden_states": torch.randn(1, 7, tiny_qwen.WIDTH),
        "timestep": torch.tensor([0.5]), "img_shapes": [[(1, 4, 4), (1, 4, 4)]], "return_dict": False,
    }  # fmt: skip
    with torch.no_grad():
        given, wanted = few(**told)[0], whole(**told)[0]
    # diffusers widens them in half precision, whatever is computed in.
    assert (given - wanted).norm() < 2e-3 * wanted.norm()


def test_single_files_draw_what_the_folder_draws_as_far_as_their_bits_reach(runtime):
    whole, plain = draw(runtime), draw(runtime, "qwen_image_edit_bf16")
    assert np.array_equal(plain, whole)
    fine = draw(runtime, "qwen-image-edit-q8")
    assert 0 < np.abs(fine - whole).mean() < 0.25 * np.abs(draw(runtime, loras=["style"]) - whole).mean() + 4


@pytest.mark.parametrize("model", ["tiny-qwen", "qwen-image-edit-q8"])
def test_a_lora_acts_and_comes_off_to_the_byte(runtime, model):
    before = draw(runtime, model)
    worn = draw(runtime, model, ["style"])
    assert np.abs(worn - before).mean() > 0.3
    assert np.array_equal(draw(runtime, model), before)
    assert np.array_equal(draw(runtime, model, ["style"]), worn)


def test_a_lora_that_does_not_fit_is_refused_and_leaves_nothing(runtime):
    before = draw(runtime)
    with pytest.raises(InvalidRequest, match="not made for this model"):
        draw(runtime, loras=["narrow"])
    assert np.array_equal(draw(runtime), before)


@pytest.mark.parametrize("precision", ["float8", "int8", "int4"])
def test_network_and_language_model_in_fewer_bits(library, runtime, precision):
    exact = draw(runtime)
    plain = {name: weight_bytes(part) for name, part in opened_of_model(runtime, "tiny-qwen").items()}
    small = open_runtime(device="cpu", library=library, precision=precision)
    try:
        rough = draw(small)
        sizes = {name: weight_bytes(part) for name, part in opened_of_model(small, "tiny-qwen").items()}
        assert np.abs(rough - exact).mean() < 40 < exact.std()
        worn = draw(small, loras=["style"])
        assert np.abs(worn - rough).mean() > 0.3 and np.array_equal(draw(small), rough)
    finally:
        small.close()
    assert sizes["transformer"] < 0.6 * plain["transformer"] and sizes["vae"] == plain["vae"]
    assert sizes["text_encoder"] < plain["text_encoder"]


def opened_of_model(runtime, model):
    opened = next(one for key, one in runtime._cache.models().items() if key.startswith(model + "@"))
    return {name: opened.components[name] for name in ("transformer", "text_encoder", "vae")}


@pytest.mark.parametrize("strategy", ["model_cpu", "streamed", "sequential_cpu"])
@pytest.mark.parametrize("model", ["tiny-qwen", "qwen-image-edit-q8"])
def test_components_take_turns_and_no_two_are_on_the_device_at_once(library, runtime, strategy, model):
    """The place on the device is watched: after every forward of a component it alone may stand there."""
    other = open_runtime(device="cpu", library=library, precision="float32")
    # Past the door that keeps these to GPUs: here the hooks move weights from RAM to RAM.
    other.device.offload = Offload(strategy)
    try:
        with other.editor(model, task="qwen-edit"):
            pass
        opened = opened_of(other)
        placement, seen = opened.placement, []
        whole = {name: weight_bytes(opened.components[name]) for name in ("transformer", "text_encoder", "vae")}
        leaves = [opened.transformer.img_in, opened.text_encoder.lm_head, opened.vae.decoder.conv_out]
        for leaf in leaves:
            leaf.register_forward_hook(lambda *told: seen.append(placement._seat.taken_by))
        picture = draw(other, model)
        assert np.array_equal(picture, draw(runtime, model))
        assert opened.placement.strategy.value == strategy and len(seen) >= 4
        seats = [group.offload_leader for group in seen if group is not None]
        expected = {"model_cpu": set(opened.modules), "streamed": {opened.text_encoder, opened.vae}}.get(
            strategy, set()
        )
        assert set(map(id, seats)) == set(map(id, expected))
        bound = placement.sizes().on_device(Offload(strategy))
        # What stands there at any time: one whole component, or a few layers of one.
        assert bound <= max(whole.values()) < sum(whole.values())
        assert all(whole[name] <= bound for name, part in opened.components.items() if part in seats)
        opened.park()
    finally:
        other.close()


def test_the_scheduler_of_a_lightning_lora_is_the_published_one():
    """diffusers' scheduler under the configuration that the authors publish gives shift 3 at every size."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**{**tiny_qwen.SCHEDULER, **schedule_of(3.0)})
    for places in (256, 4096):
        low, high = scheduler.config.base_image_seq_len, scheduler.config.max_image_seq_len
        slope = (scheduler.config.max_shift - scheduler.config.base_shift) / (high - low)
        mu = scheduler.config.base_shift + slope * (places - low)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / 4, 4), mu=mu)
        straight = np.linspace(1.0, 1 / 4, 4)
        assert np.allclose(scheduler.sigmas[:4].numpy(), 3 * straight / (1 + 2 * straight), atol=1e-6)


def test_a_folder_that_asks_for_code_of_its_own_is_not_opened(published, tmp_path):
    folder = tmp_path / "odd-qwen"
    for file in (published / "tiny-qwen").rglob("*"):
        if file.is_file():
            place = folder / file.relative_to(published / "tiny-qwen")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())
    index = json.loads((folder / "model_index.json").read_text())
    index["tokenizer"] = ["own_code", "Tokenizer"]
    (folder / "model_index.json").write_text(json.dumps(index))
    library = ModelLibrary(tmp_path / "home")
    library.add(folder)
    runtime = open_runtime(device="cpu", library=library, precision="float32")
    with pytest.raises(InvalidRequest, match="code of its own"):
        draw(runtime, "odd-qwen")
    runtime.close()


@pytest.mark.parametrize("precision", ["bfloat16", "float8", "int8", "int4"])
def test_bytes_are_computed_as_they_are_stored(precision):
    """The arithmetic that the documentation's table stands on, against a small network brought into the format."""
    tokenizer = tiny_qwen.make_tokenizer()
    parts = {"transformer": tiny_qwen.make_network(), "text_encoder": tiny_qwen.make_language_model(tokenizer)}
    for part in parts.values():
        part.to(torch.bfloat16).requires_grad_(False)
    told = {name: bytes_of(part, precision, reached(parts)) for name, part in parts.items()}
    leaf = layer_bytes(parts["transformer"].proj_out, precision, "proj_out")
    device = TorchDevice("cpu", precision)
    device.dtype = torch.bfloat16
    language_model = parts["text_encoder"].model.language_model
    quantisation.quantise({"unet": parts["transformer"], "language_model": language_model}, device)
    assert told == {name: weight_bytes(part) for name, part in parts.items()}
    assert leaf == weight_bytes(parts["transformer"].proj_out)


def test_the_documentation_and_the_catalog_state_what_is_computed():
    """Every figure of the table, and what the catalog says of the rows, from the published networks at full size."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "editing.md").read_text("utf-8")
    lines = page.partition("<!-- memory of qwen-image-edit -->")[2].split("###")[0].splitlines()
    table = {cells[1]: cells[2:6] for line in lines if len(cells := [cell.strip() for cell in line.split("|")]) == 7}
    rows = {what: re.findall(r"([0-9.]+) GB", ways) for what, ways, _ in computed(1)}
    told = {f"Qwen-Image-Edit, {name}:": name for name in ("bfloat16", "float8", "int8", "int4")}
    told |= {
        f"Qwen-Image-Edit 2511, GGUF {bits}, language": f"GGUF {bits}, language model in int4"
        for bits in ("Q4_K_M", "Q3_K_M")
    }
    for start, name in told.items():
        [ways] = [ways for what, ways in rows.items() if what.startswith(start)]
        assert table[name] == ways, name
    specs = {spec.id: spec for spec in CATALOG}
    components = full_size()
    for id in ("qwen-image-edit", "qwen-image-edit-2509", "qwen-image-edit-2511"):
        needs = needed_bytes(specs[id], [specs[part] for part in specs[id].parts])
        for precision in ("bfloat16", "float8", "int8", "int4"):
            assert needs[precision] == pytest.approx(sizes_in(precision, components).total, rel=0.01)
    # The aims: four bits on a card of 24 GB, streamed on one of 12, each with its share left to the work.
    few = sizes_in("int4", components)
    assert recommend(few, int(24 * 2**30 * (1 - SHARE_FOR_WORK))) in {Offload.NONE, Offload.VAE}
    assert recommend(few, int(12 * 2**30 * (1 - SHARE_FOR_WORK))) in {Offload.MODEL_CPU, Offload.STREAMED}
    assert few.on_device(Offload.STREAMED) < 8 * 2**30
