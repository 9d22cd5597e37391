"""Train what keeps a face on pocket, stage by stage: measure, face pack, image encoder, PuLID, InstantID, EcomID."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel, StableDiffusionXLPipeline

from app.models import eva_clip, faces
from app.models.device import TorchDevice
from app.pocket import (
    face_features,
    face_networks,
    face_pack,
    face_views,
    latent_judge,
    likeness,
    people,
    spec,
    train_ecomid,
    train_facts,
    train_identity_net,
    train_instantid,
    train_pulid,
    train_steering,
    unet_lora,
)
from app.pocket.check import load
from app.pocket.checkpoints import Stage, rng_of
from app.pocket.command_lines import ending, parse, parser_of, say, work_folder
from app.pocket.networks import save_network
from app.pocket.shards import mixed_precision
from app.pocket.train_detector import DetectorTask
from app.pocket.train_face_parts import LandmarksTask, ParsingTask
from app.pocket.train_faces import ImageEncoderTask, LikenessTask, RecognitionTask, train

IDENTITY = Path(__file__).parent / "identity"
FACES, IMAGE_ENCODER = "pocket-faces", "pocket-clip"
ENCODER_FILE = "eva02_clip.safetensors"
INSTANTID, ECOMID = "pocket-instantid", "pocket-ecomid"
PULID = {"v1.1": "pocket-pulid", "v1": "pocket-pulid-v1"}
TASKS = {
    task.name: task
    for task in (RecognitionTask, ImageEncoderTask, DetectorTask, LandmarksTask, ParsingTask, LikenessTask)
}


@dataclass(frozen=True)
class Lengths:
    """How many portraits there are, and how many steps each stage takes."""

    portraits: int
    held_out: int
    steps: dict[str, int]


STEPS = {
    "likeness": 900, "recognition": 5000, "image-encoder": 4500, "detector": 4000, "landmarks": 300, "parsing": 1700,
    "latent-judge": 3000, "facts-v1.1": 400, "tell-v1.1": 1500, "pulid-v1.1": 800, "facts-v1": 400, "tell-v1": 1800,
    "pulid-v1": 700, "tell-instantid": 1800, "instantid": 1200, "ecomid": 500,
}  # fmt: skip
PRESETS = {"cpu": Lengths(16384, 1024, STEPS), "tiny": Lengths(128, 64, dict.fromkeys(STEPS, 1))}


def main(argv: list[str] | None = None) -> int:
    """Parse the options and train; returns the exit code."""
    parser = parser_of("identity", __doc__, IDENTITY, "modules, one folder each", PRESETS)
    parser.add_argument("--measure", type=Path, default=spec.WEIGHTS, help="folder of the finished measure of likeness")
    parser.add_argument("--pack", type=Path, default=IDENTITY / FACES, help="the face pack that encoders see through")
    parser.add_argument("--only", nargs="+", choices=tuple(STEPS), help="these stages alone")
    parser.add_argument("--steps", type=int, help="how long those stages are (the preset says it)")
    parser.add_argument("--lora", type=Path, default=train_steering.FOLDER, help="folder of the LoRA that they wear")
    steering = work_folder(f"pocket-{train_steering.NAME}") / f"{train_steering.NAME}.pt"
    begin = steering if steering.exists() else IDENTITY
    parser.add_argument("--begin", type=Path, default=begin, help=train_steering.BEGIN)
    options = parse(parser, argv)
    if not (options.lora / unet_lora.FILE_NAME).is_file():
        parser.error(f"there is no LoRA in {options.lora}; `eis pocket train-steering` makes it")
    lengths = PRESETS[options.preset]
    chosen = options.only or list(lengths.steps)
    if options.steps is not None:
        lengths = replace(lengths, steps=lengths.steps | dict.fromkeys(chosen, options.steps))
    run = Run(
        lengths, options.work, options.out, options.measure, options.weights, options.lora, options.begin,
        options.pack, options.seed, options.seconds,
    )  # fmt: skip
    complete = all(run.stage(name) for name in chosen)
    print(f"pocket identity: {ending(complete)}")
    return 0


class Run:
    """One run: everything is made when the first stage asks for it."""

    def __init__(
        self,
        lengths: Lengths,
        work: Path,
        out: Path,
        measure: Path,
        weights: Path,
        lora: Path,
        begin: Path,
        pack: Path,
        seed: str,
        seconds: float | None = None,
        report: Callable[[str], None] = say,
    ):
        self.lengths, self.work, self.out, self.measure = lengths, work, out, measure
        self.begin, self.pack, self.seed, self.seconds, self.report = begin, pack, seed, seconds, report
        self.pipeline: StableDiffusionXLPipeline = load(weights)
        self.listening = StableDiffusionXLPipeline(**self.pipeline.components | {"unet": load(weights).unet.float()})
        unet_lora.put_on(self.listening.unet, lora)
        build = partial(people.build, work / "people", autoencoder=self.pipeline.vae, report=report)
        self.held_out = build("held-out", lengths.held_out)
        self.people = build(seed, lengths.portraits)

    def stage(self, name: str) -> bool:
        """Train one stage to its end (or for the run's seconds) and write its file; True when it is complete."""
        if name in TASKS:
            task, complete = self._task(name)
            self._write(name, task.network)
            return complete
        if name == latent_judge.NAME:
            return self._judge()[1]
        if name == train_instantid.TELL:
            return self._instantid_tokens()[-1]
        if name == train_instantid.NAME:
            return self._instantid()
        if name == train_ecomid.NAME:
            return self._ecomid()
        kind, _, version = name.partition("-")
        if kind == "facts":
            return self._facts(version)[-1]
        return self._tell(version)[-1] if kind == "tell" else self._pulid(version)

    def _task(self, name: str):
        steps = self.lengths.steps[name]
        return train(
            TASKS[name], self.people, self.held_out, self.work, steps, seconds=self.seconds, report=self.report
        )

    def _write(self, name: str, network: torch.nn.Module) -> None:
        faces = self.out / FACES
        if name == "likeness":
            likeness.save(network, self.measure)
        elif name == "recognition":
            face_pack.write_recognition(network, faces / "recognition.onnx")
        elif name == "detector":
            face_pack.write_detector(network, faces / "det.onnx")
        elif name == "landmarks":
            face_pack.write_landmarks(network, faces / "1k3d68.onnx")
        elif name == "parsing":
            face_pack.write_parsing(network, faces / "parsing.safetensors")
        else:
            face_pack.write_image_encoder(network, self.out / IMAGE_ENCODER / ENCODER_FILE)

    def _judge(self) -> tuple[latent_judge.LatentJudge, bool]:
        torch.manual_seed(rng_of(self.seed, "judge").getrandbits(31))
        judge = latent_judge.LatentJudge()
        steps = self.lengths.steps[latent_judge.NAME]
        stage = Stage(latent_judge.NAME, self.work, [judge], latent_judge.RATE, steps)

        def step(number: int) -> float:
            with mixed_precision(torch.device("cpu")):
                loss = latent_judge.loss_of(judge, self.people, number)
            loss.backward()
            return loss.item()

        complete = stage.run(step, seconds=self.seconds, report=self.report)
        judge.eval()
        self.report(f"{latent_judge.NAME}: {latent_judge.judge_held_out(judge, self.held_out)}")
        return judge, complete

    def _views(self) -> face_views.FaceViews:
        analyser = faces.open_analyser([self.pack], TorchDevice("cpu"))
        return face_views.build(self.work / "views", self.people, analyser, self.report)

    def _made(self, name: str) -> Path:
        """A finished module's file or folder: this run's, or what ships."""
        return next(path for path in (self.out / name, IDENTITY / name) if path.exists())

    def _features(self) -> face_features.FaceFeatures:
        clip = eva_clip.open_file(self._made(f"{IMAGE_ENCODER}/{ENCODER_FILE}"), face_networks.HEAD_DIM)
        return face_features.build(self.work / "features", self.people, self._views(), clip, self.report)

    def _instantid_tokens(self) -> tuple[torch.nn.Module, train_pulid.Attachment, bool]:
        tokens = train_facts.FactTokens(train_instantid.TOKENS)
        attachment = train_pulid.Attachment(self.pipeline.unet)
        train_facts.begin_with(self._made(PULID["v1.1"]).parent, tokens, attachment)
        for module in (tokens, attachment):
            module.eval().requires_grad_(False)
        projection, complete = train_instantid.tell(
            tokens, self.people, self._features(), self.work, self.seed, self.lengths.steps[train_instantid.TELL],
            self.seconds, self.report,
        )  # fmt: skip
        return projection, attachment, complete

    def _instantid(self) -> bool:
        projection, attachment, told = self._instantid_tokens()
        if not told:
            return False
        torch.manual_seed(rng_of(self.seed, train_instantid.NAME).getrandbits(31))
        network = train_identity_net.build_network(self.pipeline.unet)
        complete = self._network(train_instantid.NAME, train_instantid.identity_of(projection, attachment), network)
        train_instantid.save(projection, attachment, network, self.out / INSTANTID)
        return complete

    def _ecomid(self) -> bool:
        identity, network = train_ecomid.open_parts(
            self._made(f"{PULID['v1']}/pulid_v1.safetensors"), self._made(INSTANTID)
        )
        complete = self._network(train_ecomid.NAME, identity, network)
        save_network(network, self.out / ECOMID)
        return complete

    def _network(self, name: str, identity: train_identity_net.Identity, network: ControlNetModel) -> bool:
        return train_identity_net.train(
            name, self.listening, self.people, self._features(), identity, network, self._others(), self.work,
            self.seed, self.lengths.steps[name], self.seconds, self.report,
        )  # fmt: skip

    def _others(self) -> np.ndarray:
        return train_facts.build_others(self.work / "people", self.people, self.pipeline.vae, self.report)

    def _facts(self, version: str) -> tuple[train_facts.FactTokens, train_pulid.Attachment, bool]:
        name = f"facts-{version}"
        taught = self.work / "facts-v1.1.pt"
        begin = taught if version == "v1" and taught.exists() else self.begin
        return train_facts.teach(
            version, self.listening, self.people, self._others(), self.work, self.seed, self.lengths.steps[name], begin,
            self.seconds, self.report,
        )  # fmt: skip

    def _tell(self, version: str) -> tuple[torch.nn.Module, train_pulid.Attachment, bool]:
        tokens, attachment, complete = self._facts(version)
        name = f"tell-{version}"
        torch.manual_seed(rng_of(self.seed, name).getrandbits(31))
        encoder = train_pulid.build_encoder(version)
        told = train_facts.tell(
            name, encoder, partial(train_pulid.say, encoder), tokens, self.people, self._features(), self.work,
            self.seed, self.lengths.steps[name], self.seconds, self.report,
        )  # fmt: skip
        self._write_pulid(version, encoder, attachment)
        if version == "v1.1":
            tokens.save(self.out / train_facts.FILE_NAME)
        return encoder, attachment, complete and told

    def _pulid(self, version: str) -> bool:
        encoder, attachment, begun = self._tell(version)
        encoder, attachment, complete = train_pulid.train(
            version, self.listening, self.people, self._features(), self._judge()[0], self.work, self.seed,
            self.lengths.steps[f"pulid-{version}"], (encoder, attachment), self.seconds, self.report,
        )  # fmt: skip
        self._write_pulid(version, encoder, attachment)
        return begun and complete

    def _write_pulid(self, version: str, encoder: torch.nn.Module, attachment: train_pulid.Attachment) -> None:
        train_pulid.save(encoder, attachment, self.out / PULID[version] / f"pulid_{version}.safetensors")


if __name__ == "__main__":
    raise SystemExit(main())
