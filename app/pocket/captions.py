"""Captions: a scene's facts in varied plain words, and such words read back as facts."""

from __future__ import annotations

import random
import re
from dataclasses import replace

from app.pocket import portraits
from app.pocket.portraits import Person
from app.pocket.things import THINGS
from app.pocket.world import COLOURS, Scene, Thing

# Each list opens with the plain word; the others say the same.
_THING_WORDS: dict[str, tuple[str, ...]] = {name: (name,) for name in THINGS} | {
    "car": ("car", "automobile", "cars", "auto"),
    "house": ("house", "home", "cottage", "houses"),
    "tree": ("tree", "trees"),
    "mug": ("mug", "cup", "teacup", "mugs"),
    "bottle": ("bottle", "bottles"),
    "boat": ("boat", "sailboat", "ship", "boats"),
    "star": ("star", "stars"),
    "heart": ("heart", "hearts"),
    "shoe": ("shoe", "sneaker", "shoes"),
    "apple": ("apple", "apples"),
    "fish": ("fish", "goldfish"),
    "flower": ("flower", "blossom", "daisy", "flowers"),
    "lamp": ("lamp", "lampshade", "lamps"),
    "umbrella": ("umbrella", "parasol"),
    "circle": ("circle", "ball", "disc", "dot"),
    "square": ("square", "box", "cube"),
    "triangle": ("triangle", "pyramid"),
    "hat": ("hat", "tophat"),
    "cat": ("cat", "kitten", "kitty", "cats"),
    "bird": ("bird", "sparrow", "birds"),
}
_COLOUR_WORDS: dict[str, tuple[str, ...]] = {name: (name,) for name in COLOURS} | {
    "red": ("red", "crimson", "scarlet"),
    "purple": ("purple", "violet"),
    "gray": ("gray", "grey", "silver"),
    "cyan": ("cyan", "turquoise", "teal"),
    "yellow": ("yellow", "golden"),
}
_SIZE_WORDS = {"small": ("small", "little", "tiny"), "big": ("big", "large", "huge")}
_KIND_WORDS = {"woman": ("woman", "girl", "lady"), "man": ("man", "boy", "guy")}
_PERSON_WORDS = ("person", "portrait", "face", "someone")
_STYLE_WORDS = {
    "short": ("short",), "long": ("long",), "curly": ("curly", "wavy"), "bob": ("bob",), "bun": ("bun",),
    "ponytail": ("ponytail",), "spiky": ("spiky", "punk"), "bald": ("bald",),
}  # fmt: skip
_HAIR_WORDS = {"blond": ("blond", "blonde"), "red": ("red", "ginger"), "gray": ("gray", "grey")}
_SKIN_WORDS = {"pale": ("pale", "light", "fair"), "tan": ("tan", "tanned"), "brown": ("brown",), "dark": ("dark",)}
_GLASSES_WORDS = {"glasses": ("glasses", "spectacles", "eyeglasses"), "sunglasses": ("sunglasses", "shades")}
_EXPRESSION_WORDS = {
    "neutral": ("neutral", "serious", "calm"), "happy": ("happy", "smiling"), "sad": ("sad", "unhappy"),
    "surprised": ("surprised", "astonished"), "angry": ("angry", "furious"),
}  # fmt: skip
_CLOTHES_WORDS = {
    "t-shirt": ("t-shirt", "tshirt"), "shirt": ("shirt", "blouse"), "sweater": ("sweater", "pullover", "jumper"),
    "hoodie": ("hoodie",), "suit": ("suit", "jacket"),
}  # fmt: skip
_LOOK_WORDS = ("looking", "facing", "turned")
_AHEAD = ("straight", "forward", "ahead")
_STRUCTURE = (
    "background", "backdrop", "on", "in", "of", "with", "without", "no", "and", "to", "the", "a", "an", "at", "against",
    "corner", "side", "middle", "centre", "center", "next", "beside", "hair", "haired", "eyes", "eyed", "skin",
    "skinned",
    "wearing", "expression", "forward", "ahead", "straight", "beard", "bearded", "upper", "lower", "under", "over",
    "beneath", "smile", "head", "up", "down", "front", "left", "right", "top", "bottom", "above", "below",
    *_LOOK_WORDS, *_PERSON_WORDS,
)  # fmt: skip


def _reversed(words: dict[str, tuple[str, ...]]) -> dict[str, str]:
    return {word: fact for fact, several in words.items() for word in several}


_TO_THING, _TO_COLOUR, _TO_SIZE = _reversed(_THING_WORDS), _reversed(_COLOUR_WORDS), _reversed(_SIZE_WORDS)
_TO_KIND, _TO_STYLE, _TO_SKIN = _reversed(_KIND_WORDS), _reversed(_STYLE_WORDS), _reversed(_SKIN_WORDS)
_TO_HAIR = {name: name for name in portraits.HAIR_COLOURS} | _reversed(_HAIR_WORDS)
_TO_GLASSES, _TO_EXPRESSION = _reversed(_GLASSES_WORDS), _reversed(_EXPRESSION_WORDS)
_TO_CLOTHES = _reversed(_CLOTHES_WORDS)


def vocabulary() -> list[str]:
    """Every word that captions use, in a fixed order."""
    tables = (
        _TO_THING,
        _TO_COLOUR,
        _TO_SIZE,
        _TO_KIND,
        _TO_STYLE,
        _TO_HAIR,
        _TO_SKIN,
        _TO_GLASSES,
        _TO_EXPRESSION,
        _TO_CLOTHES,
    )
    return sorted({word for table in tables for word in table} | set(_STRUCTURE))


def caption(scene: Scene, rng: random.Random) -> str:
    """A caption of the scene that says some of its facts, in one of many wordings."""
    return word(mention(scene, rng), rng)


def mention(scene: Scene, rng: random.Random) -> Scene:
    """The facts that one caption of the scene says: most of them, seldom few."""
    keep = rng.choice((0.55, 0.85, 1.0, 1.0))

    def said(fact, share: float = 1.0):
        return fact if rng.random() < keep * share else None

    background = said(scene.background)
    if scene.person is not None:
        person = scene.person
        sight = person.glasses != "sunglasses"
        facts = Person(
            kind=said(person.kind),
            hair_style=said(person.hair_style, 0.85),
            hair_colour=said(person.hair_colour, 0.9),
            eye_colour=said(person.eye_colour, 0.8) if sight else None,
            skin=said(person.skin, 0.85),
            glasses=said(person.glasses, 0.35 if person.glasses == "none" else 0.97),
            expression=said(person.expression, 0.4 if person.expression == "neutral" else 0.9),
            clothing=said(person.clothing, 0.8),
            clothing_colour=said(person.clothing_colour, 0.9),
            pose=said(person.pose, 0.3 if person.pose == "front" else 0.97),
            beard=said(person.beard) if person.beard else None,
        )
        if person.hair_style == "bald" and not facts.beard:
            facts = replace(facts, hair_colour=None)
        if facts.clothing is None:
            facts = replace(facts, clothing_colour=None)
        return Scene(background, person=facts)
    things = tuple(Thing(thing.name, said(thing.colour), said(thing.size)) for thing in scene.things)
    place = scene.place or ("center" if len(things) == 1 and rng.random() < 0.12 else None)
    return Scene(background, things, relation=scene.relation, place=place if rng.random() < 0.96 else None)


def word(facts: Scene, rng: random.Random) -> str:
    """The facts in words; None is left unsaid."""
    body = _person_words(facts.person, rng) if facts.person is not None else _things_words(facts, rng)
    if facts.background is not None:
        body = _with_background(body, rng.choice(_COLOUR_WORDS[facts.background]), rng)
    return body


def _with_background(body: str, colour: str, rng: random.Random) -> str:
    ground = rng.choice(("background", "background", "background", "backdrop"))
    form = rng.random()
    if form < 0.35:
        return f"{body}, {colour} {ground}"
    if form < 0.85:
        return f"{body} {rng.choice(('on a', 'on', 'with a', 'against a', 'in front of a'))} {colour} {ground}"
    return f"{colour} {ground}, {body}"


def _article(words: str, rng: random.Random) -> str:
    if rng.random() < 0.15:
        return words
    return f"the {words}" if rng.random() < 0.12 else f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _thing_words(thing: Thing, rng: random.Random) -> str:
    names = _THING_WORDS[thing.name]
    parts = [rng.choice(_COLOUR_WORDS[thing.colour])] if thing.colour else []
    if thing.size:
        parts.insert(0 if rng.random() < 0.85 else len(parts), rng.choice(_SIZE_WORDS[thing.size]))
    parts.append(names[0] if rng.random() < 0.7 else rng.choice(names))
    plural = parts[-1] == f"{names[0]}s"
    return " ".join(parts) if plural else _article(" ".join(parts), rng)


def _place_words(place: str, rng: random.Random) -> str:
    if place == "center":
        return rng.choice(("in the center", "in the middle", "at the centre"))
    if " " in place:
        upper, side = place.split()
        if rng.random() < 0.3:
            upper = {"top": "upper", "bottom": "lower"}[upper]
        return rng.choice((f"in the {upper} {side} corner", f"at the {upper} {side}", f"in the {upper} {side}"))
    if place in ("left", "right"):
        return rng.choice((f"on the {place}", f"on the {place} side", f"at the {place}"))
    return rng.choice((f"at the {place}", f"on the {place}"))


_RELATION_WORDS = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath"),
}


def _things_words(facts: Scene, rng: random.Random) -> str:
    words = [_thing_words(thing, rng) for thing in facts.things]
    if len(words) == 2:
        if facts.relation in ("left of", "right of") and rng.random() < 0.15:
            first, second = words if rng.random() < 0.5 else words[::-1]  # which one is left stays unsaid
            return f"{first} {rng.choice(('next to', 'beside', 'and'))} {second}"
        return f"{words[0]} {rng.choice(_RELATION_WORDS[facts.relation])} {words[1]}"
    if facts.place is None:
        return words[0]
    place = _place_words(facts.place, rng)
    return f"{place} {words[0]}" if rng.random() < 0.12 else f"{words[0]} {place}"


def _person_words(person: Person, rng: random.Random) -> str:
    head = rng.choice(_KIND_WORDS[person.kind] if person.kind else _PERSON_WORDS)
    before, after = [], []
    if person.expression:
        chosen = rng.choice(_EXPRESSION_WORDS[person.expression])
        if rng.random() < 0.7:
            before.append(chosen)
        else:
            after.append(f"with a {chosen} expression")
    style, colour = person.hair_style, person.hair_colour
    colour = rng.choice(_HAIR_WORDS.get(colour, (colour,))) if colour else None
    if person.beard and colour and (style == "bald" or rng.random() < 0.5):
        after.append(f"with a {colour} beard")
    elif person.beard:
        after.append("with a beard")
    if style == "bald":
        before.append("bald")
    elif style in ("bun", "ponytail", "bob"):
        after.append(f"with {colour} hair in a {style}" if colour else f"with a {style}")
    elif style or colour:
        hair = " ".join(filter(None, (rng.choice(_STYLE_WORDS[style]) if style else None, colour)))
        if rng.random() < 0.15:
            before.append(f"{hair} haired")
        else:
            after.append(f"with {hair} hair")
    if person.skin:
        skin = rng.choice(_SKIN_WORDS[person.skin])
        before.append(f"{skin} skinned") if rng.random() < 0.35 else after.append(f"with {skin} skin")
    if person.eye_colour:
        eye = rng.choice(_COLOUR_WORDS[person.eye_colour][:2])
        before.append(f"{eye} eyed") if rng.random() < 0.15 else after.append(f"with {eye} eyes")
    if person.glasses == "none":
        after.append(rng.choice(("without glasses", "no glasses")))
    elif person.glasses:
        after.append(f"{rng.choice(('with', 'wearing'))} {rng.choice(_GLASSES_WORDS[person.glasses])}")
    if person.clothing:
        clothes = rng.choice(_CLOTHES_WORDS[person.clothing])
        clothes = (
            f"{rng.choice(_COLOUR_WORDS[person.clothing_colour])} {clothes}" if person.clothing_colour else clothes
        )
        after.append(f"{rng.choice(('wearing a', 'in a', 'with a'))} {clothes}")
    if person.pose:
        where = {"front": rng.choice(("straight ahead", "front", "forward"))}.get(person.pose, person.pose)
        after.append(
            f"{rng.choice(_LOOK_WORDS)} {rng.choice(('', 'to the ')) if where in ('left', 'right') else ''}{where}"
        )
    rng.shuffle(before)
    rng.shuffle(after)
    if head in ("portrait", "face") and rng.random() < 0.5 and not person.kind:
        head = f"{head} of a person"
    elif person.kind and rng.random() < 0.25:
        after.insert(0, "portrait") if rng.random() < 0.3 else before.insert(0, "portrait of a")
    joint = rng.choice((" ", ", ", " and "))
    return _article(" ".join([*before, head]), rng) + "".join(
        (" " if i == 0 else joint) + part for i, part in enumerate(after)
    )


def parse(text: str) -> Scene:
    """The facts that a prompt says; words that mean nothing here are passed over."""
    words = re.findall(r"[a-z]+(?:-[a-z]+)?", text.lower())
    background = place = relation = None
    things: list[Thing] = []
    person: dict[str, object] = {}
    is_portrait = False
    colours: list[str] = []  # said, and waiting for their noun
    raw: list[str] = []  # every waiting adjective, as written
    size = None

    def forget() -> None:
        nonlocal size
        colours.clear()
        raw.clear()
        size = None

    for i, token in enumerate(words):
        following = words[i + 1] if i + 1 < len(words) else ""
        earlier = words[max(0, i - 3) : i]
        if token in ("background", "backdrop"):
            background = colours[-1] if colours else background
            forget()
        elif token in ("hair", "haired", "beard", "bearded"):
            is_portrait = True
            for adjective in raw:
                if adjective in _TO_STYLE:
                    person["hair_style"] = _TO_STYLE[adjective]
                elif adjective in _TO_HAIR:
                    person["hair_colour"] = _TO_HAIR[adjective]
            if token.startswith("beard"):
                person["beard"] = True
            forget()
        elif token in ("eyes", "eyed"):
            is_portrait = True
            if colours and colours[-1] in portraits.EYE_COLOURS:
                person["eye_colour"] = colours[-1]
            forget()
        elif token in ("skin", "skinned"):
            is_portrait = True
            said = [adjective for adjective in raw if adjective in _TO_SKIN]
            if said:
                person["skin"] = _TO_SKIN[said[-1]]
            forget()
        elif token in _TO_GLASSES:
            is_portrait = True
            person["glasses"] = "none" if earlier[-1:] in (["no"], ["without"]) else _TO_GLASSES[token]
        elif token in _TO_CLOTHES:
            is_portrait = True
            person["clothing"] = _TO_CLOTHES[token]
            if colours:
                person["clothing_colour"] = colours[-1]
            forget()
        elif token in _TO_EXPRESSION or token == "smile":
            is_portrait = True
            person["expression"] = _TO_EXPRESSION.get(token, "happy")
        elif token in ("bald", "bun", "ponytail", "bob"):
            is_portrait = True
            person["hair_style"] = token
        elif token in _TO_KIND or token in _PERSON_WORDS:
            is_portrait = True
            if token in _TO_KIND:
                person["kind"] = _TO_KIND[token]
            forget()
        elif set(earlier) & set(_LOOK_WORDS) and following != "of" and token in (*portraits.POSES, *_AHEAD):
            is_portrait = True
            person["pose"] = token if token in portraits.POSES else "front"
        elif token in _TO_THING and len(things) < 2:
            things.append(Thing(_TO_THING[token], colours[-1] if colours else None, size))
            forget()
        elif token in _TO_SIZE:
            size = _TO_SIZE[token]
        elif token in ("left", "right") and following == "of":
            relation = f"{token} of"
        elif (token == "top" and following == "of") or token in ("above", "over"):
            relation = "above"
        elif token in ("below", "under", "beneath"):
            relation = "below"
        elif token in ("top", "upper", "bottom", "lower"):
            half = {"upper": "top", "lower": "bottom"}.get(token, token)
            place = f"{half} {following}" if following in ("left", "right") else half
        elif token in ("left", "right"):
            place = place if place and " " in place else token
        elif token in ("center", "centre", "middle"):
            place = "center"
        elif token in _TO_COLOUR or token in _TO_STYLE or token in _TO_HAIR or token in _TO_SKIN:
            raw.append(token)
            if token in _TO_COLOUR:
                colours.append(_TO_COLOUR[token])
    if things:
        return Scene(
            background,
            tuple(things),
            relation=relation if len(things) == 2 else None,
            place=place if len(things) == 1 else None,
        )
    return Scene(background, person=Person(**person) if is_portrait else None)
