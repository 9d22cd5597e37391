"""LoRA training: a thing, a face or a style is learned from a few pictures, and can be asked for a moment later."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from app.core import training_fields as fields
from app.core.capability import Capability, Context, Door, Request, Result
from app.core.fields import GuidanceScale, Model, Scheduler, Seed, Steps
from app.core.training_fields import TrainingPlan
from app.core.training_needs import EDIT_TASKS, check_editing
from app.core.training_notebook import Notebook, newest_checkpoint, open_sample
from app.core.training_run import draw_class, learn, told_in_file
from app.errors import DependencyMissing, InvalidRequest
from app.imaging.loss_curve import loss_curve, smoothed
from app.models.machine import check_package

TASK = "text-to-image"
NAME = "lora-training"
FREE_ON_RESUMING = {
    "name",
    "max_train_steps",
    "checkpointing_steps",
    "validation_prompts",
    "validation_steps",
    "num_inference_steps",
    "guidance_scale",
    "scheduler",
    "seed",
    "resume_from",
}
"""Fields in which a training that goes on may differ from the one that it goes on from."""
TOLD_LOSSES = 1000


class LoraTrainingRequest(Request):
    """The pictures, what they show, and how to learn from them; steps, guidance and scheduler are the samples'."""

    name: fields.LoraName
    images: fields.TrainingImages
    source_images: fields.SourceImages = ()
    captions: fields.Captions = ()
    instance_prompt: fields.InstancePrompt = ""
    trigger_word: fields.TriggerWord = None
    class_prompt: fields.ClassPrompt = None
    num_class_images: fields.ClassImages = 50
    prior_loss_weight: fields.PriorLossWeight = 1.0
    model: Model = "auto"
    max_train_steps: fields.MaxTrainSteps = 1000
    resolution: fields.Resolution = None
    train_batch_size: fields.TrainBatchSize = 1
    gradient_accumulation_steps: fields.GradientAccumulation = 1
    rank: fields.Rank = 16
    lora_alpha: fields.LoraAlpha = None
    learning_rate: fields.LearningRate = None
    train_text_encoder: fields.TrainTextEncoder = False
    text_encoder_lr: fields.TextEncoderLr = None
    optimizer: fields.OptimizerField = "adamw"
    lr_scheduler: fields.LrSchedulerField = "constant"
    lr_warmup_steps: fields.LrWarmup = 0
    snr_gamma: fields.SnrGamma = None
    max_grad_norm: fields.MaxGradNorm = 1.0
    mixed_precision: fields.MixedPrecisionField = "auto"
    gradient_checkpointing: fields.GradientCheckpointing = False
    checkpointing_steps: fields.CheckpointingSteps = 100
    validation_prompts: fields.ValidationPrompts = ()
    validation_steps: fields.ValidationSteps = 100
    num_inference_steps: Steps = None
    guidance_scale: GuidanceScale = None
    scheduler: Scheduler = None
    seed: Seed = None
    resume_from: fields.ResumeFrom = None

    @property
    def texts(self) -> list[str]:
        """What each picture is said to show, with the trigger word in it."""
        own = self.captions or ("",) * len(self.images)
        return [_with_word(caption.strip() or self.instance_prompt.strip(), self.trigger_word) for caption in own]


def _with_word(text: str, word: str | None) -> str:
    if not word or re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE):
        return text
    return f"{word}, {text}" if text else word


def advise(values: Mapping[str, Any], base: Any, additions: Mapping[str, Any]) -> dict[str, Any]:
    """What null means: the model's own size, alpha as the rank, the optimiser's usual rates."""
    if base.recommended is not None and base.recommended.is_for_few_steps:
        raise InvalidRequest(
            "This model was distilled to draw in a few steps, which training would undo; train on its base.",
            field="model",
        )
    is_own = values["optimizer"] == "prodigy"
    return {
        "resolution": base.recommended.width if base.recommended else {"sdxl": 1024}.get(base.family, 512),
        "lora_alpha": float(values["rank"]),
        "learning_rate": 1.0 if is_own else 1e-4,
        "text_encoder_lr": 1.0 if is_own else 5e-6,
    }


def unserved(devices: Collection[str] | None) -> dict[str, dict[str, str]]:
    """The optimisers that cannot work on these devices, each with what they lack."""
    lacking: dict[str, str] = {}
    for name in ("adamw-8bit", "prodigy") if devices is not None else ():
        if name == "adamw-8bit" and not any("cuda" in device for device in devices):
            lacking[name] = "needs a CUDA device, which this service has not, and the package bitsandbytes"
            continue
        try:
            check_package(name)
        except DependencyMissing as error:
            lacking[name] = error.message.removeprefix(f"{name} ").rstrip(".")
    return {"optimizer": lacking}


def check(request: LoraTrainingRequest, door: Door) -> None:
    """Every picture has a text, and what it goes on from was the same training."""
    if request.captions and len(request.captions) != len(request.images):
        raise InvalidRequest(
            f"There are {len(request.captions)} captions for {len(request.images)} pictures.", field="captions"
        )
    if not all(request.texts):
        raise InvalidRequest("Say what the pictures show: captions, instance_prompt or trigger_word.", field="captions")
    check_editing(request, door)
    if request.resume_from is not None:
        earlier = door.ended_request(request.resume_from)
        now = request.model_dump(mode="json")
        if earlier["capability"] != NAME:
            raise InvalidRequest("That job was no training.", field="resume_from")
        for name in sorted(set(now) - FREE_ON_RESUMING):
            if earlier.get(name) != now[name]:
                raise InvalidRequest(f"To go on, {name} must be as it was in that training.", field=name)


def run(request: LoraTrainingRequest, context: Context) -> Result:
    """Learn step by step, giving way between them; what breaks off goes on from its last checkpoint."""
    notebook = Notebook(context.belongings(), request.seed)
    start = newest_checkpoint(notebook.folder)
    if start is None and request.resume_from is not None:
        start = newest_checkpoint(context.belongings(request.resume_from))
        if start is None:
            raise InvalidRequest("That training broke off before its first checkpoint.", field="resume_from")
    if start is not None:
        notebook.read(start)
    classes = [open_sample(path) for path in draw_class(request, context, notebook)]
    names = TrainingPlan.__dataclass_fields__
    plan = TrainingPlan(**{name: getattr(request, name) for name in names} | {"seed": notebook.seed})
    with context.trainer(request.model, plan) as trainer:
        images = [context.image(reference) for reference in request.images]
        sources = [context.image(reference) for reference in request.source_images]
        trainer.prepare(images, request.texts, classes, request.class_prompt or "", sources)
        if start is not None:
            trainer.restore(start)
            context.tell_stage("resumed", f"Goes on after step {notebook.step}.", step=notebook.step)
        learn(request, context, trainer, notebook)
        path = notebook.folder / f"lora-{notebook.step:06d}.safetensors"
        trainer.write(path, told_in_file(request, notebook))
    title = request.name
    lora = context.register_model(str(path), kind="lora", title=title, id=lora_id(title, context.job))
    curve = loss_curve(notebook.losses, notebook.step)
    drawn = notebook.samples()
    every = max(1, -(-notebook.step // TOLD_LOSSES))
    data = {
        "lora": lora,
        "trigger_word": request.trigger_word,
        "steps": notebook.step,
        "losses": [round(loss, 6) for loss in smoothed(notebook.losses)[::every]],
        "loss_every": every,
        "samples": [{"step": sample.step, "prompt": sample.number} for sample in drawn],
        "stages": list(context.stages),
    }
    seeds = [*(sample.seed for sample in drawn), notebook.seed]
    return Result(images=[*(open_sample(sample.path) for sample in drawn), curve], seeds=seeds, data=data)


def lora_id(title: str, job: str) -> str:
    """An id of the library that no other training has."""
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:40].rstrip("-")
    return f"{slug or 'lora'}-{job[:6]}"


LORA_TRAINING = Capability(
    name=NAME,
    title="Training",
    summary="Learn a thing, a face or a style from a few pictures, as a LoRA that is usable at once.",
    request=LoraTrainingRequest,
    run=run,
    check=check,
    advise=advise,
    unserved=unserved,
    needs=(TASK, *EDIT_TASKS),
    gives_way=True,
    gives_pictures=False,
    example={"name": "My thing", "trigger_word": "sks", "max_train_steps": 2, "rank": 2, "seed": 7},
)
