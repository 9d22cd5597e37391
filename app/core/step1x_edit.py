"""Step1X-Edit: a picture changed by an instruction, with the model's own reasoning before and after."""

from collections.abc import Callable

from PIL import Image

from app.core.capability import Capability, Context, Request, Result
from app.core.edit_fields import (
    Align,
    EditedImage,
    MaxTries,
    PasteChanges,
    PasteFeather,
    PasteGrow,
    QuotingInstruction,
    Reflection,
    SizeLevel,
    Thinking,
    Unwanted,
)
from app.core.fields import GuidanceScale, Loras, Model, Seed, Steps
from app.core.staying_put import stay_put
from app.core.step1x_reasoning import Reasoner, Tried, best_of

TASK = "step1x-edit"


class Step1XEditRequest(Request):
    """A picture, what to change, and how much the model is to think about it."""

    prompt: QuotingInstruction
    image: EditedImage
    negative_prompt: Unwanted = None
    model: Model = "auto"
    loras: Loras = ()
    num_inference_steps: Steps = None
    guidance_scale: GuidanceScale = None
    size_level: SizeLevel = 1024
    thinking: Thinking = False
    reflection: Reflection = False
    max_tries: MaxTries = 3
    align: Align = True
    paste_changes: PasteChanges = False
    paste_grow: PasteGrow = 8
    paste_feather: PasteFeather = 8
    seed: Seed = None


def run(request: Step1XEditRequest, context: Context) -> Result:
    """The instruction, rewritten if wished; then one edit, or as many as reflection asks for."""
    original = context.image(request.image)
    generator = context.generators(request.seed)[0]
    tries = request.max_tries if request.reflection else 1
    context.expect_steps(request.num_inference_steps * tries)
    with context.editor(request.model, task=TASK, loras=request.loras) as editor:
        reasoner = Reasoner(editor, context, generator)
        instruction = request.prompt
        if request.thinking:
            instruction = reasoner.think(original, instruction)

        def edit(image: Image.Image, words: str) -> Image.Image:
            return editor(
                prompt=words,
                image=image,
                negative_prompt=request.negative_prompt or "",
                num_inference_steps=request.num_inference_steps,
                guidance_scale=request.guidance_scale,
                size_level=request.size_level,
                generator=generator,
                callback_on_step_end=context.on_step,
            ).images[0]

        if request.reflection:
            made = reflect(request, context, reasoner, edit, original, instruction)
            edited, data = made[best_of(made)].image, {"chosen_try": best_of(made) + 1, "tries": len(made)}
        else:
            edited, data = edit(original, instruction), {}
    image, told, notes = stay_put(request, original, edited)
    data |= {"instruction": instruction, "stages": list(context.stages), **told}
    return Result(images=[image], seeds=[request.seed], data=data, notes=[*reasoner.notes, *notes])


def reflect(
    request: Step1XEditRequest,
    context: Context,
    reasoner: Reasoner,
    edit: Callable[[Image.Image, str], Image.Image],
    original: Image.Image,
    instruction: str,
) -> list[Tried]:
    """Try, judge, correct: a reflection goes on from the last picture, a failure starts anew from the original.

    Nothing more is tried after a success, nor after a verdict that could not be read.
    """
    made: list[Tried] = []
    image, words = original, instruction
    while len(made) < request.max_tries:
        attempt = len(made) + 1
        context.tell_stage("edit", words, attempt=attempt)
        edited = edit(image, words).resize(original.size, Image.Resampling.LANCZOS)
        tried = reasoner.reflect(original, edited, instruction, attempt)
        made.append(tried)
        if tried.verdict is None or tried.verdict.kind in {"success", "others"}:
            break
        image, words = original, instruction
        if tried.verdict.kind == "reflection":
            image, words = edited, tried.verdict.instruction or instruction
    return made


STEP1X_EDIT = Capability(
    name="step1x-edit",
    title="Step1X-Edit",
    tab="instructions",
    group_title="Edit",
    summary="Change a picture by an instruction, with the model's reasoning shown as it happens.",
    request=Step1XEditRequest,
    run=run,
    needs=(TASK,),
    example={"prompt": "make the car green", "seed": 7},
)
