"""Words and small pieces of HTML that several pages share; everything that a person wrote is escaped here."""

import re
import time
from collections.abc import Iterable
from html import escape
from typing import Any

LABELS = {
    "align": "Lay back what slid",
    "bottom": "Add below",
    "character_mean_cut": "Cut characters at the widest gap",
    "character_threshold": "Threshold for characters",
    "clip_skip": "CLIP skip",
    "control_guidance_end": "Until",
    "control_guidance_start": "From",
    "control_image": "Control picture",
    "control_images": "Control picture",
    "control_type": "Follow its",
    "controlnet_conditioning_scale": "How strictly",
    "controlnet_model": "ControlNet",
    "controlnets": "ControlNets for the control pictures",
    "draw": "Draw the faces on the picture",
    "ecomid_model": "EcomID weights",
    "enhance_non_face_region": "Around the face only",
    "eraser": "Removed by",
    "face_index": "Which face",
    "faces_model": "Face pack",
    "escape_brackets": "Escape brackets",
    "exclude": "Leave out",
    "face_image": "Person",
    "face_images": "Further picture",
    "face_images_index": "Face on the further picture",
    "further_images": "Further picture",
    "ground": "Prompt that facts are added to",
    "guidance_scale": "Guidance",
    "guidance_scales": "Several guidances",
    "id_end": "Face acts until",
    "id_scale": "Strength of the face",
    "id_start": "Face acts from",
    "image": "Picture",
    "image_guidance_scale": "How closely the picture is kept",
    "image_guidance_scales": "Several such values",
    "inline": "Masks inside the answer",
    "instantid_model": "InstantID weights",
    "ip_adapter_blocks": "Blocks that look at the picture",
    "ip_adapter_images": "Picture as a prompt",
    "ip_adapter_model": "IP-Adapter",
    "ip_adapter_scale": "Strength of the picture",
    "images": "Picture",
    "instance_prompt": "What the pictures show",
    "class_prompt": "Its class",
    "ip_end": "Pictures act until",
    "ip_start": "Pictures act from",
    "mask_index": "Which mask",
    "num_zero": "Empty tokens",
    "ortho": "How the face makes way",
    "pose_face_index": "Which face of the pose",
    "product_image": "Product",
    "product_scale": "Size of the product",
    "product_x": "Product across",
    "product_y": "Product down",
    "source_images": "What each was made from",
    "invert_mask": "Turn the mask round",
    "mask_grow": "Grow the mask",
    "mask_image": "Mask",
    "masks": "Mask",
    "mean_cut": "Cut at the widest gap",
    "max_tries": "Tries at most",
    "keep_lines": "Lay the lines over",
    "left": "Add on the left",
    "lora_alpha": "Alpha",
    "loras": "LoRAs",
    "lr_scheduler": "Course of the learning rate",
    "lr_warmup_steps": "Warm-up steps",
    "max_grad_norm": "Longest gradient",
    "max_train_steps": "Training steps",
    "num_class_images": "Pictures of the class",
    "num_images_per_prompt": "Pictures",
    "num_inference_steps": "Steps",
    "paste_changes": "Paste only what changed",
    "paste_feather": "Fade of what is pasted",
    "paste_grow": "Pasted around what changed",
    "padding_mask_crop": "Padding around the mask",
    "pose_image": "Pose",
    "preprocess": "Map",
    "prior_loss_weight": "Weight of the class",
    "prepend": "Put first",
    "pulid_model": "PuLID weights",
    "return_maps": "Show the maps",
    "rating_in_caption": "End with the rating",
    "reflection": "Judge and correct",
    "right": "Add on the right",
    "query": "Look for",
    "safe_search": "Safe for everybody",
    "second_pass_scale": "Second pass: enlarge by",
    "second_pass_strength": "Second pass: strength",
    "second_pass_steps": "Second pass: steps",
    "restorer": "Restored by",
    "resume_from": "Go on from job",
    "segmenter": "Masks by",
    "snr_gamma": "Min-SNR gamma",
    "size_level": "Worked on at",
    "seam": "Fade at the seam",
    "shortcut_scale": "Look of the face (FaceID plus v2)",
    "softedge_model": "ControlNet for the product's outline",
    "softedge_scale": "Strength of the outline",
    "target_face_index": "Which face of the picture",
    "tile_controlnet": "Tile ControlNet",
    "tagger": "Tagged by",
    "textual_inversions": "Textual inversions",
    "thinking": "Rewrite the instruction first",
    "text_encoder_lr": "Learning rate of the text encoders",
    "top": "Add above",
    "true_cfg_scale": "Guidance",
    "tile_size": "Size of the parts",
    "upscaler": "Made larger by",
    "vae_tiling": "Decode in tiles",
}
VERBS = {
    "tag-image": "Tag",
    "web-search": "Search",
    "detect-faces": "Detect",
    "lora-training": "Train",
    "upscale": "Upscale",
    "restore-face": "Restore",
}
"""What the button says where it does not generate."""

GREETINGS = {
    "tag-image": "The tags of your pictures appear here.",
    "web-search": "What the web has appears here.",
    "lora-training": "The loss and samples appear here while it learns, and the LoRA's name when it has.",
}

STATUS_WORDS = {
    "queued": "Waiting",
    "running": "Running",
    "succeeded": "Done",
    "failed": "Failed",
    "cancelled": "Cancelled",
}

CHECKS = {
    "Input should be ": "must be ",
    "String should have at least 1 character": "must not be empty",
    "String should have ": "must have ",
    "Tuple should have ": "must have ",
}
"""How a check begins what it says -> how a form does, after the field's label."""


def label(name: str) -> str:
    """A field's name as a person reads it."""
    return LABELS.get(name) or name.replace("_", " ").capitalize()


def size(count: int) -> str:
    """Bytes as a person reads them: 61 MB, 6.9 GB."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def duration(seconds: float) -> str:
    """Seconds as a person reads them: 0.8 s, 42 s, 3 min 5 s."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def moment(unix: float | None) -> str:
    """A time as an element that the page's script rewrites in the reader's own time zone."""
    if unix is None:
        return ""
    iso = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(unix))
    return f'<time datetime="{iso}">{iso.replace("T", " ").rstrip("Z")} UTC</time>'


def button(text: str, action: str, *, style: str = "", confirm: str = "", **data: Any) -> str:
    """A button that the page reports as an event with `action` and the data; `confirm` asks for a second click."""
    attributes = "".join(f' data-{key}="{escape(str(value))}"' for key, value in data.items())
    ask = f' data-confirm="{escape(confirm)}"' if confirm else ""
    return (
        f'<button type="button" class="eis-button {style}" data-action="{action}"{ask}{attributes}>'
        f"{escape(text)}</button>"
    )


def chooser(prompt: str, action: str, options: Iterable[tuple[str, str]], **data: Any) -> str:
    """A menu whose choice the page reports as an event; it goes back to its prompt afterwards."""
    attributes = "".join(f' data-{key}="{escape(str(value))}"' for key, value in data.items())
    items = "".join(f'<option value="{escape(value)}">{escape(text)}</option>' for value, text in options)
    return (
        f'<select class="eis-button eis-menu" data-action="{action}" aria-label="{escape(prompt)}"{attributes}>'
        f'<option value="" selected>{escape(prompt)}</option>{items}</select>'
    )


def picture_url(reference: str) -> str:
    """Where the browser finds a stored picture."""
    return f"api/v1/images/{reference}?format=png"


def thumbnail_url(reference: str) -> str:
    """Where the browser finds a stored picture's small version."""
    return f"api/v1/images/{reference}/thumbnail"


def in_words(field: str, message: str) -> str:
    """What is wrong with a field of a form, by its label."""
    told = without_backticks(message)
    begun = any(check in told for check in CHECKS)
    for check, words in CHECKS.items():
        told = told.replace(check, words, 1)
    name = field.partition(".")[0]
    return f"{label(name)} {told}" if name and begun else f"{label(name)}: {told}" if name else upper(told)


def without_backticks(message: str) -> str:
    """A message as a page shows it: what stands in backticks is a field's label, or a command as it is typed."""
    return re.sub(r"`([^`]+)`", lambda found: f"“{LABELS.get(found[1], found[1])}”", message)


def upper(sentence: str) -> str:
    """The sentence with a capital at its begin and a full stop."""
    return sentence[:1].upper() + sentence[1:].rstrip(".") + "."


def empty(title: str, hint: str) -> str:
    """What stands where nothing is yet."""
    return f'<div class="eis-empty"><strong>{escape(title)}</strong><span>{escape(hint)}</span></div>'


def badge(text: str, tone: str = "") -> str:
    """A short word in a small coloured frame."""
    return f'<span class="eis-badge {tone}">{escape(text)}</span>'
