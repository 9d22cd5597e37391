"""How a URL of a stranger must be spelled: what is refused before any name is resolved."""

import re

import httpx

from app.errors import UrlNotAllowed
from app.public_addresses import is_public

MAX_URL = 8192

_PRIVATE_SUFFIXES = ("localhost", "localdomain", "local", "internal", "intranet", "lan", "home.arpa")
_HOST_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_.")

_AUTHORITY = re.compile(r"(?:[^/?#]*//)?([^/?#]*)")


def refused() -> UrlNotAllowed:
    """The one sentence for every refusal: it tells nobody which names exist inside."""
    return UrlNotAllowed("This URL is not allowed: it must be https and name a public host that exists.")


def parse(url: str) -> httpx.URL:
    """An http or https URL without a user in it; `UrlNotAllowed` for every other text."""
    if not url or len(url) > MAX_URL or any(letter <= " " or letter in "\\\x7f" for letter in url):
        raise refused()
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        raise refused() from None
    if parsed.scheme not in {"http", "https"} or "@" in _AUTHORITY.match(url)[1] or not parsed.raw_host:
        raise refused()
    return parsed


def host_of(url: httpx.URL) -> str:
    """The host in the letters that a resolver is asked with."""
    host = url.raw_host.decode("ascii").lower()
    return host[:-1] if host.endswith(".") else host


def port_of(url: httpx.URL) -> int:
    """The port that is stated, be it 0, or the scheme's own."""
    return {"http": 80, "https": 443}[url.scheme] if url.port is None else url.port


def refuse_obvious(host: str, port: int) -> None:
    """Refuse what needs no resolver: numbers in odd spellings, private names, ports of other services."""
    if not (port in (80, 443) or 1024 <= port <= 65535):
        raise refused()
    if ":" in host:
        if not is_public(host):
            raise refused()
        return
    if not host or not set(host) <= _HOST_LETTERS:
        raise refused()
    labels = host.split(".")
    if not all(labels):
        raise refused()
    if labels[-1].isdigit() or labels[-1].startswith("0x"):
        if not is_public(host):
            raise refused()
        return
    if len(labels) < 2 or any(host == suffix or host.endswith("." + suffix) for suffix in _PRIVATE_SUFFIXES):
        raise refused()
