"""The way of a training: its steps, the pictures that show how far it is, and what its file says of itself.

The requests here are `LoraTrainingRequest`s with nothing null that the run asks about.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.core.capability import Context, Trainer
from app.core.training_fields import kinds_of
from app.core.training_notebook import Notebook, save_whole
from app.errors import JobCancelled
from app.imaging.loss_curve import loss_curve, training_picture

MULTIPLE = 64
"""Samples have sides of which every UNet can halve as often as it does (pixels)."""


def learn(request: Any, context: Context, trainer: Trainer, notebook: Notebook) -> None:
    """The steps that are left."""
    steps = request.max_train_steps
    how = f"If the run ends early, resume_from {context.job} goes on from here."
    try:
        while notebook.step < steps:
            context.give_way()
            notebook.losses.append(trainer.step(notebook.step + 1))
            if notebook.step % request.validation_steps == 0 or notebook.step == steps:
                draw_samples(request, context, trainer, notebook)
            if notebook.step % request.checkpointing_steps == 0 or notebook.step == steps:
                notebook.save(trainer)
                context.tell_stage("checkpoint", f"Kept at step {notebook.step}. {how}", step=notebook.step)
            context.progress(notebook.step, steps)
            if context.is_watched:
                context.show(training_picture(loss_curve(notebook.losses, steps), notebook.last_samples()))
    except JobCancelled:
        if notebook.step:
            notebook.save(trainer)
            context.tell_stage("checkpoint", f"Ended at step {notebook.step}. {how}", step=notebook.step)
        raise


def draw_samples(request: Any, context: Context, trainer: Trainer, notebook: Notebook) -> None:
    """What the model makes of each validation prompt now; always from the same noise.

    Where it learns to edit, of the source at the prompt's own place.
    """
    sources = request.source_images
    side = max(MULTIPLE, round(request.resolution / MULTIPLE) * MULTIPLE)
    for number, prompt in enumerate(request.validation_prompts):
        told = drawing(request, context, prompt, notebook.step)
        if sources:
            told["image"] = context.image(sources[number % len(sources)])
        image = trainer.draw(scheduler=request.scheduler, width=side, height=side, **told)
        notebook.keep_sample(image, number, request.seed)


def drawing(request: Any, context: Context, prompt: str, step: int, more: int = 0) -> dict[str, Any]:
    """The arguments of one picture's call, which ends when the job is to end."""

    def on_step(pipeline: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        context.progress(step, request.max_train_steps)
        return tensors

    return {
        "prompt": prompt,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "generator": context.generators(request.seed + more)[0],
        "callback_on_step_end": on_step,
    }


def draw_class(request: Any, context: Context, notebook: Notebook) -> Iterator[Path]:
    """The pictures of the class, as the model itself draws them; those that lie there are not drawn again."""
    if request.class_prompt is None:
        return
    wanted = [path for _, path in zip(range(request.num_class_images), notebook.class_pictures(), strict=False)]
    missing = [(number, path) for number, path in enumerate(wanted) if not path.exists()]
    if missing:
        kinds = kinds_of(request.class_prompt)
        context.tell_stage("class", f"Draws {len(missing)} pictures of the class first.")
        with context.borrow(request.model, task="text-to-image", scheduler=request.scheduler) as pipeline:
            for number, path in missing:
                context.give_way()
                kind = kinds[number % len(kinds)]
                image = pipeline(**drawing(request, context, kind, 0, number)).images[0]
                save_whole(image, path)
    yield from wanted


def told_in_file(request: Any, notebook: Notebook) -> dict[str, str]:
    """What the file says of its training, in kohya's words and the modelspec's."""
    told = {
        "ss_output_name": request.name,
        "ss_sd_model_name": request.model,
        "ss_steps": str(notebook.step),
        "ss_num_train_images": str(len(request.images)),
        "ss_resolution": f"({request.resolution}, {request.resolution})",
        "ss_learning_rate": str(request.learning_rate),
        "ss_optimizer": request.optimizer,
        "ss_seed": str(notebook.seed),
        "ss_tag_frequency": json.dumps({"dataset": {text: request.texts.count(text) for text in request.texts}}),
        "modelspec.title": request.name,
    }
    return told | ({"modelspec.trigger_phrase": request.trigger_word} if request.trigger_word else {})
