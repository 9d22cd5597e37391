"""Write the pages that are derived from the code: capabilities, settings, errors, models.

`make docs` writes them; the suite compares them with what this file would write, so that no page lags behind.
"""

import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from app.api.errors import HTTP_CODES, status_of  # noqa: E402
from app.core.catalog import CATALOG  # noqa: E402
from app.errors import ServiceError  # noqa: E402
from app.models.catalog import CATALOG as MODELS  # noqa: E402
from app.models.embedded import is_left_out  # noqa: E402
from app.models.tiers import needed_bytes, tiers_of  # noqa: E402
from app.settings import Settings  # noqa: E402

NOTE = "<!-- Derived from the code by `make docs`. -->\n"


def cell(text: object) -> str:
    """Text that stands safely inside a table."""
    return str(text).replace("|", "\\|").replace("\n", " ")


def table(head: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def limits(schema: dict[str, Any]) -> str:
    """What a value may be, in a few words."""
    variants = schema.get("anyOf", [schema])
    words = []
    for variant in variants:
        if variant.get("type") == "null":
            words.append("null")
        elif "enum" in variant:
            words.append("one of " + ", ".join(str(value) for value in variant["enum"]))
        elif "pattern" in variant:
            words.append("numbers" if schema.get("kind") == "points" else "a picture")
        else:
            words.append(f"{variant.get('type', 'object')} {span(variant)}".rstrip())
    return "; ".join(words)


def span(variant: dict[str, Any]) -> str:
    """From where to where a number may be; a limit that it may not reach itself is told as such."""
    low, above = variant.get("minimum"), variant.get("exclusiveMinimum")
    high, below = variant.get("maximum"), variant.get("exclusiveMaximum")
    if variant.get("type") == "integer":
        low, above = (above + 1, None) if above is not None else (low, None)
        high, below = (below - 1, None) if below is not None else (high, None)
    start = f"above {above}" if above is not None else "" if low is None else str(low)
    end = f"below {below}" if below is not None else "" if high is None else str(high)
    if start and end:
        return f"{start} to {end}"
    return f"from {start}" if start else f"up to {end}" if end else ""


def capabilities_page() -> str:
    """Every capability with its fields."""
    parts = [NOTE, "# Capabilities\n"]
    rows = [(f"[`{c.name}`](#{c.name.replace('/', '')})", c.title, c.summary) for c in CATALOG]
    parts.append(table(("capability", "title", "what it does"), rows))
    for capability in CATALOG:
        schema = capability.request.model_json_schema()
        required = set(schema.get("required", ()))
        parts.append(f"\n## {capability.name}\n\n{capability.summary}\n")
        parts.append(f"`POST /api/v1/{capability.name}` · `eis run {capability.name}`\n")
        rows = []
        for name, facts in schema["properties"].items():
            default = "required" if name in required else f"`{facts.get('default')}`".replace("None", "null")
            rows.append((f"`{name}`", limits(facts), default, facts.get("description", "")))
        parts.append(table(("field", "value", "default", "meaning"), rows))
    return "\n".join(parts)


def settings_page() -> str:
    """Every setting with its variable."""
    rows = []
    for name, info in Settings.model_fields.items():
        default = "the platform's data folder" if name == "home" else info.get_default(call_default_factory=True)
        shown = "" if default in (None, ()) else f"`{','.join(default) if isinstance(default, tuple) else default}`"
        rows.append((f"`EIS_{name.upper()}`", shown, info.description))
    head = "Read once at the start, from the environment and from `.env` in the working folder.\n"
    return "\n".join([NOTE, "# Settings\n", head, table(("variable", "default", "meaning"), rows)])


def error_classes() -> list[type[ServiceError]]:
    """Every class of the error tree, parents first."""
    found, pending = [], [ServiceError]
    while pending:
        current = pending.pop(0)
        found.append(current)
        pending = [*sorted(current.__subclasses__(), key=lambda kind: kind.__name__), *pending]
    return found


def errors_page() -> str:
    """Every error code with its status."""
    rows = [(f"`{kind.code}`", status_of(kind), (kind.__doc__ or "").split("\n")[0]) for kind in error_classes()]
    rows += [(f"`{code}`", status, meaning) for code, (status, meaning) in HTTP_CODES.items()]
    head = 'An answer that is an error reads `{"error": {"code", "message", "details"}}`.\n'
    return "\n".join([NOTE, "# Errors\n", head, table(("code", "status", "meaning"), rows)])


def models_page() -> str:
    """Every row of the model catalog."""
    rows = []
    known = {spec.id: spec for spec in MODELS}
    for spec in (spec for spec in MODELS if not is_left_out(spec, DOCS.parent)):
        size = f"{spec.bytes / 1e9:.2f} GB" if spec.bytes >= 1e9 else f"{spec.bytes / 1e6:.0f} MB" if spec.bytes else ""
        licence = f"[{spec.licence.name}]({spec.licence.url})" + (" (asked)" if spec.licence.ask else "")
        licence += ", *no commercial use*" if spec.licence.ask and not spec.licence.commercial else ""
        needs = tiers_of(needed_bytes(spec, [known[part] for part in spec.parts]))
        tiers = ", ".join(f"{name}: {needs[name]}" for name in ("float16", "float32") if needs)
        parts = ", ".join(f"`{part}`" for part in spec.parts)
        rows.append((f"`{spec.id}`", spec.title, spec.kind, size, tiers, licence, ", ".join(spec.tasks), parts))
    head = (
        "`eis models pull ID` installs one: it resumes, checks every file's SHA-256, asks for the licence where it "
        "limits use, and keeps only safetensors, plain configuration and the ONNX files that a row names. A model that "
        "is made of parts (an autoencoder, a LoRA, a face stack) brings them along, asks for their licences too, and "
        "takes them away with its last user.\n\n"
        "What is published as a pickle (`.bin`, `.pt`, `.pth`) is checked by its SHA-256, opened without running any "
        "of it in a process of its own, stored as safetensors and deleted; one that asks for code is refused. EcomID's "
        "5 GB in 32 bits are stored in 16. `pulid`, `ecomid`, `instantid` and `ip-adapter` each bring all that they "
        "need; `ip-adapter` is a set: the plus adapters for SDXL and SD 1.5 and their image encoder.\n\n"
        "`eis models add FILE` adds a checkpoint, LoRA, textual inversion, autoencoder, ControlNet, IP-Adapter, "
        "PuLID, LaMa, upscaler or face restorer of your own, recognised by its keys; `eis models add FOLDER` a "
        "diffusers folder, an InstantID (`ip-adapter.safetensors` beside `ControlNetModel`), a SAM or SAM 2, or what "
        "others need as a part: an "
        "antelopev2 or buffalo_l folder, a CLIP image encoder, facexlib's networks. Such a part takes the row of that "
        "name, and must have the published bytes where they are known. `--kind identity` says that an SDXL ControlNet "
        "is EcomID's, which nothing in the file tells. On the same disk a file is linked, from another one copied; "
        "yours stays where it is. A pickle of your own is refused. `eis models rm ID` takes a model away.\n\n"
        "Licences marked *no commercial use* bind what is made with the weights too: every job that uses them says so "
        "in its answer.\n\n"
        "`device` is the lowest [tier](devices.md) whose memory holds the weights at a number format (bfloat16 as "
        "float16); an addition needs what the model under it does.\n"
    )
    columns = ("id", "title", "kind", "size", "device", "licence", "serves", "with")
    return "\n".join([NOTE, "# Models\n", head, table(columns, rows)])


PAGES = {
    "capabilities.md": capabilities_page,
    "settings.md": settings_page,
    "errors.md": errors_page,
    "models.md": models_page,
}

if __name__ == "__main__":
    for name, build in PAGES.items():
        (DOCS / name).write_text(build())
        print(f"docs/{name}")
