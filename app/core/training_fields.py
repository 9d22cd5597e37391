"""The vocabulary of trainings, named as in diffusers' training scripts; and the plan that a trainer follows."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, StringConstraints

from app.core.fields import ImageReference, field, refuse_foreign_syntax

MOST_PICTURES = 1000
Optimizer = Literal["adamw", "adamw-8bit", "prodigy"]
LrScheduler = Literal["constant", "constant_with_warmup", "linear", "cosine"]
MixedPrecision = Literal["auto", "no", "bf16"]


def refuse_blank(text: str) -> str:
    """The text; `ValueError` where nothing of it can be seen."""
    if not any(letter.isalnum() for letter in text):
        raise ValueError("it needs a letter or a digit")
    return text


def kinds_of(class_prompt: str) -> list[str]:
    """The kinds that a class prompt names, one to a line; one that names none is itself the only kind."""
    return [line.strip() for line in class_prompt.splitlines() if line.strip()] or [class_prompt]


LoraName = Annotated[
    str,
    field("What the new LoRA is called.", min_length=1, max_length=80),
    AfterValidator(refuse_blank),
]
Caption = Annotated[str, StringConstraints(max_length=2000)]
TrainingImages = Annotated[
    tuple[ImageReference, ...],
    field(
        "The pictures to learn from, as they were uploaded or as `POST /api/v1/datasets` answered them.",
        kind="images",
        min_length=1,
        max_length=MOST_PICTURES,
    ),
]
SourceImages = Annotated[
    tuple[ImageReference, ...],
    field(
        "For a model that edits: what each of `images` was made from, in their order, so that it learns the edits that "
        "their captions ask for. Empty list: it learns from the pictures alone, which Step1X-Edit cannot.",
        kind="images",
        max_length=MOST_PICTURES,
    ),
]
Captions = Annotated[
    tuple[Caption, ...],
    field(
        "What each picture shows, in the order of `images`; an empty one means `instance_prompt`. Empty list: all are.",
        kind="captions",
        max_length=MOST_PICTURES,
    ),
]
InstancePrompt = Annotated[
    Caption, field("What the pictures show, for those without a caption of their own.", kind="prompt")
]
TriggerWord = Annotated[
    str | None,
    field(
        "A word that calls what is learned: it is put in front of captions that lack it, and told in the file.",
        max_length=100,
    ),
]
ClassPrompt = Annotated[
    Caption | None,
    field(
        "What things of its kind are called: the model draws pictures of it first and keeps them as they are while it "
        "learns (prior preservation); several kinds stand one to a line and take turns; null: none.",
        kind="prompt",
    ),
]
ClassImages = Annotated[int, field("How many pictures of the class to draw.", only_with="class_prompt", ge=1, le=1000)]
PriorLossWeight = Annotated[
    float, field("How much keeping the class counts beside learning.", only_with="class_prompt", ge=0, le=10)
]
Resolution = Annotated[
    int | None,
    field("Side of the square whose pixels each picture gets in its own shape; null: the model's own.", ge=64, le=2048),
]
MaxTrainSteps = Annotated[int, field("Number of training steps.", ge=1, le=100_000)]
TrainBatchSize = Annotated[int, field("Pictures in one forward.", ge=1, le=64)]
GradientAccumulation = Annotated[int, field("Forwards whose gradients make one step.", ge=1, le=64)]
LearningRate = Annotated[
    float | None,
    field("How far a step goes; null: 1e-4, and 1 for Prodigy, which finds its own.", gt=0, le=10),
]
TextEncoderLr = Annotated[
    float | None, field("The same for the text encoders; null: 5e-6, and 1 for Prodigy.", gt=0, le=10)
]
Rank = Annotated[int, field("Rank of the LoRA's matrices: more can hold more.", ge=1, le=256)]
LoraAlpha = Annotated[float | None, field("The LoRA acts with alpha / rank; null: alpha is the rank.", gt=0, le=1024)]
TrainTextEncoder = Annotated[bool, field("Let the text encoders learn too.")]
OptimizerField = Annotated[
    Optimizer,
    field("What turns gradients into steps; adamw-8bit needs a CUDA device and bitsandbytes, prodigy prodigyopt."),
]
LrSchedulerField = Annotated[LrScheduler, field("How the learning rate goes over the run.")]
LrWarmup = Annotated[int, field("Steps over which the learning rate rises from zero.", ge=0, le=10_000)]
SnrGamma = Annotated[
    float | None,
    field("Weighs steps of little noise less (min-SNR); 5 is usual; null: every step counts the same.", gt=0, le=20),
]
MixedPrecisionField = Annotated[
    MixedPrecision, field("bf16 computes in half of the bits; auto: on a CUDA device. The LoRA itself is float32.")
]
GradientCheckpointing = Annotated[bool, field("Compute twice what memory would have to hold.")]
MaxGradNorm = Annotated[float, field("Longer gradients are cut to this length.", gt=0, le=100)]
CheckpointingSteps = Annotated[
    int, field("Steps between two checkpoints; a run that breaks off goes on from the last.", ge=1, le=100_000)
]
ValidationPrompts = Annotated[
    tuple[Annotated[Caption, AfterValidator(refuse_foreign_syntax)], ...],
    field(
        "What to draw at intervals, to see how far it is; the trigger word is written as in any prompt.", max_length=4
    ),
]
ValidationSteps = Annotated[int, field("Steps between two drawings.", ge=1, le=100_000)]
ResumeFrom = Annotated[
    str | None,
    field(
        "Id of an ended training with the same pictures and settings: go on from its last checkpoint, for as many "
        "steps in all as are wished now.",
        pattern=r"^[0-9a-z]{26}$",
    ),
]


@dataclass(frozen=True)
class TrainingPlan:
    """What a trainer follows. Rates are those in force; `resolution` is the side of a square in pixels."""

    resolution: int
    seed: int
    max_train_steps: int = 1000
    train_batch_size: int = 1
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-4
    text_encoder_lr: float = 5e-6
    rank: int = 16
    lora_alpha: float = 16.0
    train_text_encoder: bool = False
    optimizer: Optimizer = "adamw"
    lr_scheduler: LrScheduler = "constant"
    lr_warmup_steps: int = 0
    snr_gamma: float | None = None
    prior_loss_weight: float = 1.0
    mixed_precision: MixedPrecision = "auto"
    gradient_checkpointing: bool = False
    max_grad_norm: float = 1.0
