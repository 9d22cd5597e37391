"""The A1111 infotext: the lines under a picture that its tools and Civitai read, built from a request and parsed back.

    a prompt, over as many lines as it has
    Negative prompt: likewise
    Steps: 20, Sampler: Euler a, Schedule type: Automatic, CFG scale: 7, Seed: 1, Size: 512x512, ...

The rules of reading are A1111's own (`modules/infotext_utils.py`): the last line counts as parameters when it has at
least three pairs, a value with a comma, a colon or a line break is a JSON string, a size becomes `Size-1` and `Size-2`.
A prompt with a line that starts with `Negative prompt:` cannot be told apart by them; the recipe holds it exactly.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

_PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_SIZE = re.compile(r"^(\d+)x(\d+)$")
_LORA = re.compile(r"<lora:([^:<>]+):(-?\d+(?:\.\d+)?)>")
_INVERSION = re.compile(r"\s*([^:]+?)\s*:\s*[0-9a-fA-F]*\s*(?:,|$)")
_NEGATIVE = "Negative prompt:"
_UNIFORM, _KARRAS = "Uniform", "Karras"

_SAMPLERS: Mapping[str, tuple[str, str]] = {
    "DDIM": ("DDIM", _UNIFORM),
    "DDPM": ("DDPM", _UNIFORM),
    "DPM++ 2M": ("DPM++ 2M", _UNIFORM),
    "DPM++ 2M Karras": ("DPM++ 2M", _KARRAS),
    "DPM++ 2M SDE": ("DPM++ 2M SDE", _UNIFORM),
    "DPM++ 2M SDE Karras": ("DPM++ 2M SDE", _KARRAS),
    "DPM++ SDE": ("DPM++ SDE", _UNIFORM),
    "DPM++ SDE Karras": ("DPM++ SDE", _KARRAS),
    "DPM2": ("DPM2", _UNIFORM),
    "DPM2 a": ("DPM2 a", _UNIFORM),
    "Euler": ("Euler", _UNIFORM),
    "Euler a": ("Euler a", _UNIFORM),
    "Heun": ("Heun", _UNIFORM),
    "LCM": ("LCM", _UNIFORM),
    "LMS": ("LMS", _UNIFORM),
    "PNDM": ("PLMS", _UNIFORM),
    "TCD": ("TCD", _UNIFORM),
    "UniPC": ("UniPC", _UNIFORM),
}
"""Our name of a scheduler -> A1111's sampler and schedule type."""

_NAMES = {pair: name for name, pair in _SAMPLERS.items()}

_AUTOMATIC: Mapping[str, str] = {
    "DPM++ 2M": _KARRAS,
    "DPM++ SDE": _KARRAS,
    "DPM++ 2M SDE": "Exponential",
    "DPM2": _KARRAS,
    "DPM2 a": _KARRAS,
}
"""What A1111 takes `Automatic` for, by its `modules/sd_samplers_kdiffusion.py`; for every other sampler Uniform."""


class Parsed(NamedTuple):
    """An infotext taken apart; `parameters` are A1111's keys with their values as text."""

    prompt: str
    negative_prompt: str
    parameters: dict[str, str]


def build_infotext(
    request: Mapping[str, Any],
    *,
    seed: int | None,
    size: tuple[int, int],
    model: str | None = None,
    model_sha256: str | None = None,
    addition_sha256: Mapping[str, str] | None = None,
    version: str,
) -> str:
    """The infotext of one picture of this resolved request (as JSON), made with `seed` and `size` pixels large.

    `addition_sha256` maps the ids of LoRAs and textual inversions to the hashes of their files. What a request does
    not have is left out.
    """
    loras = [(lora["model"], lora.get("weight", 1.0)) for lora in request.get("loras") or ()]
    prompt = request.get("prompt", "") + "".join(f" <lora:{name}:{_number(weight)}>" for name, weight in loras)
    sampler, schedule = _sampler(request.get("scheduler"))
    second_pass = request.get("second_pass_scale")
    first_size = (request.get("width"), request.get("height")) if second_pass else size
    pairs: dict[str, Any] = {
        "Steps": request.get("num_inference_steps"),
        "Sampler": sampler,
        "Schedule type": schedule,
        "CFG scale": request.get("guidance_scale"),
        "Seed": seed,
        "Size": "{}x{}".format(*(first_size if all(first_size) else size)),
        "Model hash": model_sha256 and model_sha256[:10],
        "Model": model,
        "Denoising strength": request.get("second_pass_strength") if second_pass else request.get("strength"),
        # diffusers counts the layers left out, A1111 the layer that is taken.
        "Clip skip": request["clip_skip"] + 1 if request.get("clip_skip") else None,
        "Hires upscale": second_pass,
        "Hires steps": request.get("second_pass_steps") if second_pass else None,
        "Hires upscaler": "Lanczos" if second_pass else None,
        "Mask blur": request.get("mask_blur"),
    }
    if "mask_image" in request:
        padding = request.get("padding_mask_crop")
        pairs["Inpaint area"] = "Whole picture" if padding is None else "Only masked"
        pairs["Masked area padding"] = padding
    digests = addition_sha256 or {}
    hashes = [(name, digests[name]) for name, _ in loras if digests.get(name)]
    pairs["Lora hashes"] = ", ".join(f"{name}: {digest[:12]}" for name, digest in hashes) or None
    # The only place that names textual inversions, so one of unknown hash stands there as well.
    inversions = [(name, digests.get(name) or "") for name in request.get("textual_inversions") or ()]
    pairs["TI hashes"] = ", ".join(f"{name}: {digest[:12]}".strip() for name, digest in inversions) or None
    pairs["Version"] = f"Edit Image Service {version}"
    lines = [prompt]
    if request.get("negative_prompt"):
        lines.append(f"{_NEGATIVE} {request['negative_prompt']}")
    lines.append(", ".join(f"{key}: {_quote(value)}" for key, value in pairs.items() if value is not None))
    return "\n".join(lines)


def parse_infotext(text: str) -> Parsed:
    """An infotext taken apart by A1111's rules; text without parameters is all prompt."""
    *lines, last = text.strip().split("\n")
    pairs = _PAIR.findall(last)
    if len(pairs) < 3:
        lines.append(last)
        pairs = []
    prompt: list[str] = []
    negative: list[str] = []
    reading = prompt
    for line in lines:
        line = line.strip()
        if line.startswith(_NEGATIVE):
            reading = negative
            line = line.removeprefix(_NEGATIVE).strip()
        if line or reading:
            reading.append(line)
    parameters: dict[str, str] = {}
    for key, value in pairs:
        value = _unquote(value)
        if size := _SIZE.match(value):
            parameters[f"{key}-1"], parameters[f"{key}-2"] = size.groups()
        else:
            parameters[key] = value
    return Parsed("\n".join(prompt), "\n".join(negative), parameters)


def request_from_infotext(text: str) -> dict[str, Any]:
    """The fields of our requests that an infotext holds: of our own pictures, or of A1111's and its relatives'.

    Only what is understood: an unknown sampler, a number that is none, is left out.
    """
    parsed = parse_infotext(text)
    found = parsed.parameters
    fields: dict[str, Any] = {
        "prompt": _LORA.sub("", parsed.prompt).strip(),
        "negative_prompt": parsed.negative_prompt or None,
        "num_inference_steps": _as(int, found.get("Steps")),
        "guidance_scale": _as(float, found.get("CFG scale")),
        "seed": _as(int, found.get("Seed")),
        "width": _as(int, found.get("Size-1")),
        "height": _as(int, found.get("Size-2")),
        "scheduler": _scheduler(found),
        "model": found.get("Model"),
        "mask_blur": _as(int, found.get("Mask blur")),
        "padding_mask_crop": _as(int, found.get("Masked area padding")),
        "second_pass_scale": _as(float, found.get("Hires upscale")),
        "second_pass_steps": _as(int, found.get("Hires steps")) or None,
    }
    strength = _as(float, found.get("Denoising strength"))
    fields["second_pass_strength" if fields["second_pass_scale"] else "strength"] = strength
    if (clip_skip := _as(int, found.get("Clip skip"))) and clip_skip > 1:
        fields["clip_skip"] = clip_skip - 1
    if inversions := _INVERSION.findall(found.get("TI hashes", "")):
        fields["textual_inversions"] = inversions
    if loras := [{"model": name, "weight": float(weight)} for name, weight in _LORA.findall(parsed.prompt)]:
        fields["loras"] = loras
    return {name: value for name, value in fields.items() if value is not None}


def _sampler(scheduler: str | None) -> tuple[str | None, str | None]:
    """A1111's sampler and schedule type: `Automatic`, as A1111 writes it, where that is what it takes."""
    if scheduler is None:
        return None, None
    sampler, schedule = _SAMPLERS.get(scheduler, (scheduler, _UNIFORM))
    return sampler, "Automatic" if schedule == _AUTOMATIC.get(sampler, _UNIFORM) == _UNIFORM else schedule


def _scheduler(found: Mapping[str, str]) -> str | None:
    """Our name of a sampler: A1111 writes the schedule apart, or, in older versions, after the sampler."""
    sampler = found.get("Sampler", "")
    schedule = found.get("Schedule type", _UNIFORM)
    if sampler.endswith(" " + _KARRAS):
        sampler, schedule = sampler.removesuffix(" " + _KARRAS), _KARRAS
    elif schedule == "Automatic":
        schedule = _AUTOMATIC.get(sampler, _UNIFORM)
    return _NAMES.get((sampler, schedule))


def _quote(value: Any) -> str:
    text = _number(value) if isinstance(value, (int, float)) else str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ',:\n"') else text


def _unquote(value: str) -> str:
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value


def _number(value: float) -> str:
    """The shortest way to write it: 7 for 7.0."""
    return str(int(value)) if float(value).is_integer() else repr(value)


def _as(kind: type, text: str | None) -> Any:
    try:
        return None if text is None else kind(text)
    except ValueError:
        return None
