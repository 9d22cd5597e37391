"""Train pocket from nothing: autoencoder, encoded pictures, text encoders, UNet, weights folder; resumable."""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file

from app.errors import InvalidRequest
from app.pocket import captions, classifier, latents, spec, train_autoencoder, train_text, train_unet
from app.pocket.command_lines import add_presets, ending, parse, say, work_folder
from app.pocket.networks import build_pipeline


def main(argv: list[str] | None = None) -> int:
    """Parse the options and train; returns the exit code."""
    parser = argparse.ArgumentParser("eis pocket train", description=__doc__)
    parser.add_argument("--out", type=Path, default=spec.WEIGHTS, help="folder of the finished weights")
    parser.add_argument("--work", type=Path, default=work_folder("pocket"), help="folder of checkpoints")
    parser.add_argument(
        "--start",
        type=Path,
        help="a weights folder to go on from when its checkpoints are gone: autoencoder and text encoders stay as they "
        "are, the UNet learns on",
    )
    add_presets(parser, spec.PRESETS)
    parser.add_argument("--pictures", type=int, help="pictures that the UNet sees (the preset says how many)")
    parser.add_argument("--autoencoder-pictures", type=int, help="pictures that the autoencoder sees")
    parser.add_argument("--text-captions", type=int, help="captions that the text encoders see")
    parser.add_argument("--latents", type=int, help="different pictures encoded for the UNet")
    parser.add_argument("--seconds", type=float, help="stop the UNet after this long; the next run goes on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile the steps (needs a C++ compiler)")
    arguments = parse(parser, argv)
    given = {
        "unet_pictures": arguments.pictures,
        "autoencoder_pictures": arguments.autoencoder_pictures,
        "text_captions": arguments.text_captions,
        "latents": arguments.latents,
    }
    preset = replace(
        spec.PRESETS[arguments.preset], **{name: value for name, value in given.items() if value is not None}
    )
    complete = train(
        preset,
        arguments.work,
        arguments.out,
        arguments.seed,
        torch.device(arguments.device),
        arguments.compile,
        arguments.seconds,
        arguments.start,
    )
    print(f"pocket: {ending(complete)}, weights in {arguments.out}")
    return 0


def train(
    preset: spec.Preset,
    work: Path,
    out: Path,
    seed: int,
    device: torch.device,
    compiled: bool = False,
    seconds: float | None = None,
    start: Path | None = None,
) -> bool:
    """Run every stage that is not complete, then write the weights; True when all of it is complete."""
    torch.manual_seed(seed)
    pipeline = build_pipeline(preset, captions.vocabulary())
    texts = (pipeline.text_encoder, pipeline.text_encoder_2, pipeline.tokenizer)
    if start is None:
        train_autoencoder.train(pipeline.vae, preset, work, seed, device, compiled, report=say)
        train_text.train(*texts, preset, work, seed, device, report=say)
    else:
        load_networks(pipeline, start)
    latents.encode(pipeline.vae, preset, work, seed, device, report=say)
    complete = train_unet.train(
        pipeline.unet, *texts, pipeline.scheduler, preset, work, seed, device, compiled, seconds=seconds, report=say
    )
    export(pipeline, out, _classifier(preset, work, seed))
    return complete


def load_networks(pipeline: StableDiffusionXLPipeline, folder: Path) -> None:
    """Take every network's weights from a folder that `export` wrote; `InvalidRequest` if they do not fit."""
    for name in ("vae", "text_encoder", "text_encoder_2", "unet"):
        files = list((folder / name).glob("*.safetensors"))
        if not files:
            raise InvalidRequest(f"{folder} holds no weights of a {name}.")
        try:
            getattr(pipeline, name).load_state_dict(load_file(files[0]))
        except RuntimeError:
            raise InvalidRequest(f"The {name} in {folder} is not of this preset's size.") from None
    pipeline.vae.register_to_config(scaling_factor=1.0)


def _classifier(preset: spec.Preset, work: Path, seed: int) -> classifier.ThingClassifier:
    """The check's classifier, trained once."""
    if (work / classifier.FILE_NAME).exists():
        return classifier.load(work)
    network, accuracy = classifier.train(preset.classifier_steps, seed)
    say(f"classifier: {accuracy:.2%} of held-out pictures named right")
    classifier.save(network, work)
    return network


def export(pipeline: StableDiffusionXLPipeline, out: Path, network: classifier.ThingClassifier) -> None:
    """Write the weights folder: diffusers' layout, safetensors, float16, and the check's classifier."""
    for module in (pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2, pipeline.unet):
        module.to("cpu", torch.float16)
    for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2):  # their files would keep how they were last called
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    pipeline.save_pretrained(part, safe_serialization=True)
    for name in ("text_encoder", "text_encoder_2"):  # else transformers would compute in the files' float16
        path = part / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "float32"}, indent=2) + "\n")
    classifier.save(network, part)
    shutil.rmtree(out, ignore_errors=True)
    part.rename(out)


if __name__ == "__main__":
    raise SystemExit(main())
