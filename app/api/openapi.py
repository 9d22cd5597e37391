"""What FastAPI cannot know of the document: each capability's own JSON schema, and how pictures may be given in it.

It is put together when somebody asks for it: building every schema at the start would cost more than the routes.
"""

from collections.abc import Iterable
from typing import Any

from pydantic.json_schema import models_json_schema

from app.api.batch_schemas import BATCH_ANSWERS, WISHES
from app.api.chains import THEN, THEN_SCHEMA
from app.api.schemas import ANSWERS, PREFIX, ErrorAnswer, documented
from app.core.capability import Capability, image_fields
from app.core.device_configuration import DeviceConfiguration

PICTURE_TEXT = "A stored picture's reference, a data URI, base64, or an https URL."
COMPONENTS = "#/components/schemas/"
FOR_FORMS = {"kind", "of"}
"""What a field says to whoever lays out a form; in the document they are extensions."""

EVERYWHERE = {"401": "A key is needed.", "403": "Host or Origin is refused."}
"""What may turn a request away before any route of the API is asked."""


def complete(document: dict[str, Any], catalog: Iterable[Capability]) -> dict[str, Any]:
    """The document with the capabilities' bodies, the answers' schemas, and our own shape of a 422."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    answers = [(answer, "serialization") for answer in (*ANSWERS, *BATCH_ANSWERS)]
    wishes = [(wish, "validation") for wish in (*WISHES, DeviceConfiguration)]
    _, definitions = models_json_schema([*answers, *wishes], ref_template=f"{COMPONENTS}{{model}}")
    schemas.update(definitions["$defs"])
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if path.startswith(PREFIX):
                for status, meaning in EVERYWHERE.items():
                    operation["responses"].setdefault(status, documented(ErrorAnswer, meaning))
            refusal = operation["responses"].get("422")
            if refusal is not None:
                refusal["content"] = {"application/json": {"schema": {"$ref": f"{COMPONENTS}{ErrorAnswer.__name__}"}}}
    for capability in catalog:
        reference = wish_schema(capability, schemas)
        document["paths"][f"{PREFIX}/{capability.name}"]["post"]["requestBody"] = request_body(capability, reference)
    return document


def wish_schema(capability: Capability, components: dict[str, Any], prefix: str = COMPONENTS) -> dict[str, str]:
    """Put the Request's schema and all it refers to into `components`; answer the reference to it."""
    name = capability.request.__name__
    schema = capability.request.model_json_schema(ref_template=f"{prefix}{{model}}")
    for inner, definition in schema.pop("$defs", {}).items():
        components.setdefault(inner, definition)
    for field, kind in image_fields(capability.request).items():
        given = schema["properties"][field]
        picture = {"type": "string", "minLength": 1}
        text = {
            "title": given.get("title", field),
            "description": f"{given.get('description', '')} {PICTURE_TEXT}".strip(),
        }
        if kind == "images":
            limits = {key: given[key] for key in ("minItems", "maxItems") if key in given}
            schema["properties"][field] = {"type": "array", "items": picture, **limits, **text, "x-kind": kind}
        elif field in schema.get("required", ()):
            schema["properties"][field] = {**picture, **text, "x-kind": kind}
        else:
            schema["properties"][field] = {
                "anyOf": [picture, {"type": "null"}],
                "default": given.get("default"),
                **text,
                "x-kind": kind,
            }
    if capability.gives_pictures:
        schema["properties"][THEN] = dict(THEN_SCHEMA)
    for given in schema["properties"].values():
        for own in FOR_FORMS & given.keys():
            given[f"x-{own}"] = given.pop(own)
    components[name] = schema
    return {"$ref": f"{prefix}{name}"}


def request_body(capability: Capability, reference: dict[str, str]) -> dict[str, Any]:
    """Both encodings of the body: JSON by reference, and a form whose picture fields may be files."""
    pictures = image_fields(capability.request)
    schema = capability.request.model_json_schema(ref_template=f"{COMPONENTS}{{model}}")
    properties = {}
    for name, given in schema["properties"].items():
        text = {key: given[key] for key in ("title", "description") if key in given}
        if name in pictures:
            file = {"type": "string", "format": "binary"}
            one = {"anyOf": [file, {"type": "string", "minLength": 1}]}
            properties[name] = {**({"type": "array", "items": one} if pictures[name] == "images" else one), **text}
        else:
            properties[name] = {key: value for key, value in given.items() if key not in FOR_FORMS}
    if capability.gives_pictures:
        properties[THEN] = dict(THEN_SCHEMA)
    form = {
        "type": "object",
        "properties": properties,
        "required": schema.get("required", []),
        "additionalProperties": False,
    }
    return {
        "required": True,
        "content": {
            "application/json": {"schema": reference, "example": dict(capability.example)},
            "multipart/form-data": {"schema": form},
        },
    }
