"""Who is asked when the web is searched: SearXNG, DuckDuckGo (the package ddgs), Brave or Tavily; one at a time.

Every request goes through the guarded client, but for those of ddgs, which brings a client of its own and is told
nothing but the words. What a provider answers is a stranger's text: it is cut to plain words and to URLs that are
http or https, and no URL of it is followed here.
"""

import html
import importlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal
from urllib.parse import urlencode, urlsplit

from app.errors import DependencyMissing, InvalidRequest, SearchOff, TransferFailed, Unavailable
from app.guarded_http import GuardedClient

Kind = Literal["pictures", "text"]
PROVIDERS = ("searxng", "ddgs", "brave", "tavily")
ANSWER_LIMIT = 8 * 2**20
SECONDS = 20.0
LONGEST_URL, LONGEST_TITLE, LONGEST_TEXT = 2048, 300, 1000
BRAVE = "https://api.search.brave.com/res/v1"
TAVILY = "https://api.tavily.com/search"
OFF = (
    "Web search is off on this server: EIS_SEARCH_PROVIDER names who is asked (searxng, ddgs, brave or tavily), and "
    "docs/search.md says what each of them needs."
)

_TAG = re.compile(r"<[^<>]{0,200}>")
_SPACE = re.compile(r"[\s\x00-\x1f\x7f\u200b-\u200f\u2028-\u202e\ufeff]+")


@dataclass(frozen=True)
class Found:
    """One result: the page that it stands on, and the picture where there is one. What is not known is null."""

    title: str
    url: str
    source: str
    text: str = ""
    licence: str | None = None
    image_url: str | None = None
    thumbnail_url: str | None = None
    width: int | None = None
    height: int | None = None


@dataclass(frozen=True)
class Query:
    """What is asked for."""

    words: str
    kind: Kind
    count: int
    safe: bool = True
    language: str | None = None


class SearchProvider:
    """The provider that the operator named; `InvalidRequest` where what it needs is not set."""

    def __init__(self, name: str | None, url: str | None, key: str | None, client: GuardedClient) -> None:
        self.name = name
        self._url, self._key, self._client = (url or "").rstrip("/"), key or "", client
        if name is not None and name not in PROVIDERS:
            raise InvalidRequest(f"EIS_SEARCH_PROVIDER is one of {', '.join(PROVIDERS)}.")
        if name == "searxng" and not url:
            raise InvalidRequest("EIS_SEARCH_URL: searxng needs the address of your SearXNG, as http://host:8080.")
        if name in {"brave", "tavily"} and not key:
            raise InvalidRequest(f"EIS_SEARCH_KEY: {name} needs a key.")

    def search(self, query: Query) -> list[dict[str, Any]]:
        """What was found, as JSON. `SearchOff`, `DependencyMissing`; `Unavailable` where nobody answers."""
        if self.name is None:
            raise SearchOff(OFF)
        ask: Callable[[Query], Iterable[Found | None]] = getattr(self, f"_ask_{self.name}")
        try:
            found = list(ask(query))
        except TransferFailed as error:
            raise Unavailable(f"The search provider {self.name} cannot be reached: {error.message}") from None
        except (ValueError, TypeError, AttributeError, KeyError):
            raise Unavailable(f"The search provider {self.name} answered with something that is no list of results.") \
                from None  # fmt: skip
        kept = [one for one in found if one is not None and (query.kind == "text" or one.image_url)]
        once = {one.image_url if query.kind == "pictures" else one.url: one for one in reversed(kept)}
        return [asdict(one) for one in reversed(once.values())][: query.count]

    def _ask_searxng(self, query: Query) -> Iterable[Found | None]:
        category = "images" if query.kind == "pictures" else "general"
        wish = {"q": query.words, "format": "json", "categories": category, "safesearch": 2 if query.safe else 0}
        wish |= {"language": query.language} if query.language else {}
        try:
            told = self._get(f"{self._url}/search?{urlencode(wish)}", {})
        except InvalidRequest as error:
            raise Unavailable(
                f"SearXNG refused: {error.message} Its settings.yml must list json under search.formats."
            ) from None
        for one in told["results"]:
            width, height = _sides(one.get("resolution"))
            yield _found(
                one, title="title", url="url", text="content", image=one.get("img_src"),
                thumbnail=one.get("thumbnail_src") or one.get("thumbnail"), source=one.get("source"),
                licence=one.get("license"), width=width, height=height,
            )  # fmt: skip

    def _ask_brave(self, query: Query) -> Iterable[Found | None]:
        wish = {"q": query.words, "count": min(query.count, 20 if query.kind == "text" else 100)}
        wish |= {"safesearch": "strict" if query.safe else "off"}
        wish |= {"search_lang": query.language} if query.language else {}
        headers = {"x-subscription-token": self._key, "accept": "application/json"}
        where = "web" if query.kind == "text" else "images"
        told = self._get(f"{BRAVE}/{where}/search?{urlencode(wish)}", headers)
        for one in (told.get("web") or {}).get("results", ()) if query.kind == "text" else told["results"]:
            picture, small = one.get("properties") or {}, one.get("thumbnail") or {}
            yield _found(
                one, title="title", url="url", text="description", image=picture.get("url"),
                thumbnail=small.get("src"), source=one.get("source"), licence=one.get("license"),
                width=picture.get("width"), height=picture.get("height"),
            )  # fmt: skip

    def _ask_tavily(self, query: Query) -> Iterable[Found | None]:
        wish = {"query": query.words, "max_results": min(query.count, 20)}
        wish |= {"include_images": True, "include_image_descriptions": True} if query.kind == "pictures" else {}
        headers = {"authorization": f"Bearer {self._key}", "content-type": "application/json"}
        answer = self._client.post(
            TAVILY, content=json.dumps(wish).encode(), headers=headers, limit=ANSWER_LIMIT, seconds=SECONDS
        )
        if answer.status != 200:
            raise Unavailable(f"The search provider tavily answered with status {answer.status}.")
        told = json.loads(answer.content)
        if query.kind == "text":
            for one in told["results"]:
                yield _found(one, title="title", url="url", text="content")
            return
        for one in told["images"]:
            picture = {"url": one} if isinstance(one, str) else one
            yield _found(picture, title="description", url="url", text="", image=picture["url"])

    def _ask_ddgs(self, query: Query) -> Iterable[Found | None]:
        try:
            ddgs = importlib.import_module("ddgs")
        except ModuleNotFoundError:
            raise DependencyMissing(
                "EIS_SEARCH_PROVIDER=ddgs needs a package: pip install 'edit-image-service[search]'."
            ) from None
        wish = {"safesearch": "on" if query.safe else "off", "max_results": query.count}
        try:
            with ddgs.DDGS(timeout=int(SECONDS)) as client:
                told = (client.images if query.kind == "pictures" else client.text)(query.words, **wish)
        except ddgs.exceptions.DDGSException as error:
            if "No results" in str(error):
                return
            raise Unavailable("The search provider ddgs cannot be reached or refuses for now.") from None
        for one in told:
            yield _found(
                one, title="title", url="url" if query.kind == "pictures" else "href", text="body",
                image=one.get("image"), thumbnail=one.get("thumbnail"), source=one.get("source"),
                width=one.get("width"), height=one.get("height"),
            )  # fmt: skip

    def _get(self, url: str, headers: Mapping[str, str]) -> dict[str, Any]:
        return json.loads(self._client.get_bytes(url, limit=ANSWER_LIMIT, seconds=SECONDS, headers=headers))


def _found(
    told: Mapping[str, Any], *, title: str, url: str, text: str, image: Any = None, thumbnail: Any = None,
    source: Any = None, licence: Any = None, width: Any = None, height: Any = None,
) -> Found | None:  # fmt: skip
    """A result from a provider's words; None where it names no page that can be opened."""
    page = _url(told.get(url))
    if page is None:
        return None
    host = (urlsplit(page).hostname or "").removeprefix("www.")
    return Found(
        title=_plain(told.get(title), LONGEST_TITLE) or host,
        url=page,
        source=_plain(source, LONGEST_TITLE) or host,
        text=_plain(told.get(text), LONGEST_TEXT),
        licence=_plain(licence, LONGEST_TITLE) or None,
        image_url=_url(image),
        thumbnail_url=_url(thumbnail),
        width=_side(width),
        height=_side(height),
    )


def _url(told: Any) -> str | None:
    """An http or https URL; `//host/path` is https."""
    text = told.strip() if isinstance(told, str) else ""
    text = f"https:{text}" if text.startswith("//") else text
    try:
        is_whole = urlsplit(text).scheme in {"http", "https"} and bool(urlsplit(text).hostname)
    except ValueError:
        return None
    return text if is_whole and len(text) <= LONGEST_URL and text.isprintable() and " " not in text else None


def _plain(told: Any, longest: int) -> str:
    """Words without markup and control characters, on one line."""
    text = html.unescape(_TAG.sub("", told)) if isinstance(told, str) else ""
    return _SPACE.sub(" ", text.encode("utf-8", "ignore").decode()).strip()[:longest]


def _side(told: Any) -> int | None:
    digits = str(told).strip() if isinstance(told, int | str) else ""
    return int(digits) if digits.isdecimal() and len(digits) < 7 else None


def _sides(told: Any) -> tuple[int | None, int | None]:
    """`1920 x 1080` in any spelling."""
    match = re.match(r"\s*(\d{1,6})\s*[x×*]\s*(\d{1,6})", told) if isinstance(told, str) else None
    return (int(match[1]), int(match[2])) if match else (None, None)
