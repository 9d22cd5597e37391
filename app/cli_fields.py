"""A Request's fields as flags: one flag for each, with its description, limits and default from the field itself.

A list of models is given one at a time, `--lora NAME=0.8`; a list of texts one at a time as well. `null`, and an empty
value, stand for null where the field allows it.
"""

import argparse
from collections.abc import Collection
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from app.core.capability import image_fields
from app.core.fields import WeightedModel

UNSET = object()


def add_flags(parser: argparse.ArgumentParser, wish: type[BaseModel], *, but: Collection[str] = ()) -> None:
    """One flag for each field but those; values keep their text where pydantic reads it."""
    pictures = image_fields(wish)
    for name, info in wish.model_fields.items():
        if name in but:
            continue
        flag = "--" + name.replace("_", "-")
        text = help_text(info)
        options: dict[str, Any] = {"dest": field_dest(name), "default": UNSET, "help": text}
        kinds = members(info.annotation)
        if bool in kinds:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
        elif name in pictures:
            many = {"action": "append"} if pictures[name] == "images" else {}
            parser.add_argument(flag, metavar="FILE|URL|ID", **many, **options)
        elif tuple in kinds or list in kinds:
            model = WeightedModel in element_types(info.annotation)
            singular = flag if flag.endswith("ss") else flag.removesuffix("s")
            is_taken = field_dest(singular[2:].replace("-", "_")) in {field_dest(other) for other in wish.model_fields}
            names = [flag] if is_taken else [singular, flag]
            parser.add_argument(*names, action=Append, metavar="MODEL[=WEIGHT]" if model else "NAME", **options)
        elif choices := literals(info.annotation):
            nullable = [*choices, "null"] if NoneType in kinds else choices
            parser.add_argument(flag, type=choice_of(nullable), metavar="NAME", **options)
        else:
            parser.add_argument(flag, metavar=metavar(kinds), **options)


class Append(argparse.Action):
    """Collect repeated values; an own class because the default is a mark and no list."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        held = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*([] if held is UNSET else held), values])


def given_fields(options: argparse.Namespace, wish: type[BaseModel]) -> dict[str, Any]:
    """The fields that were given, as a payload; pictures still as they were named."""
    payload = {}
    for name, info in wish.model_fields.items():
        value = getattr(options, field_dest(name), UNSET)
        if value is UNSET:
            continue
        if value in ("null", "") and NoneType in members(info.annotation):
            value = None
        elif isinstance(value, list) and WeightedModel in element_types(info.annotation):
            value = [weighted(text) for text in value]
        payload[name] = value
    return payload


def weighted(text: str) -> dict[str, Any]:
    """`model=0.8` or `model`."""
    model, separator, weight = text.rpartition("=")
    return {"model": model, "weight": weight} if separator else {"model": text}


def field_dest(name: str) -> str:
    return f"field_{name}"


def help_text(info: FieldInfo) -> str:
    """Description, limits and default, safe for argparse."""
    facts = []
    for limit in info.metadata:
        for word, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
            if (bound := getattr(limit, word, None)) is not None:
                facts.append(f"{sign} {bound}")
    if choices := literals(info.annotation):
        facts.append(", ".join(choices))
    if info.is_required():
        facts.append("required")
    elif info.default not in (None, (), "", False, True):
        facts.append(f"default {info.default}")
    text = (info.description or "").rstrip(".")
    return (f"{text} ({'; '.join(facts)})" if facts else text).replace("%", "%%")


def choice_of(names: list[str]) -> Any:
    """A choice that ignores case, so that `euler a` is `Euler a`."""
    folded = {name.casefold(): name for name in names}

    def read(text: str) -> str:
        if text.casefold() not in folded:
            raise argparse.ArgumentTypeError(f"not one of: {', '.join(names)}")
        return folded[text.casefold()]

    return read


def metavar(kinds: set[Any]) -> str:
    return "N" if int in kinds else "X" if float in kinds else "TEXT"


def members(annotation: Any) -> set[Any]:
    """The bare types that an annotation allows."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return members(get_args(annotation)[0])
    if origin in {Union, UnionType}:
        return set().union(*(members(part) for part in get_args(annotation)))
    return {origin or annotation}


def element_types(annotation: Any) -> set[Any]:
    """The types inside a tuple or list."""
    found: set[Any] = set()
    for part in get_args(annotation):
        found |= members(part) if part is not Ellipsis else set()
    return found


def literals(annotation: Any) -> list[str]:
    """The words of a Literal, also inside a union."""
    if get_origin(annotation) is Literal:
        return [word for word in get_args(annotation) if isinstance(word, str)]
    if get_origin(annotation) in {Union, UnionType, Annotated}:
        return [word for part in get_args(annotation) for word in literals(part)]
    return []
