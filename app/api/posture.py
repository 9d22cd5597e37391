"""Who may ask: the Host, Origin and key checks that stand before every route, the browser page included.

A page on another site can make a browser send requests here, and a name that resolves to this machine can make them
look local. So a Host that nobody named is refused (DNS rebinding), and a state-changing request from a foreign
origin is refused (request forgery). A request without Origin, as curl sends it, passes. With keys set, every request
but `/health` carries one; jobs and pictures then belong to the key that made them, by its hash.
"""

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.errors import Refusal

SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
OPEN_PATHS = {"/health"}
LOGIN_PATH = "/login"
SESSION_COOKIE = "eis_session"

CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'self'"
)
SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    # Not `no-referrer`: with it a browser says `Origin: null` of the login form, which the check would refuse.
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"content-security-policy", CONTENT_POLICY.encode()),
]


def owner_of(key: str) -> str:
    """The name under which a key's jobs are kept: a hash, so that the database holds no key."""
    return hashlib.sha256(b"owner:" + key.encode()).hexdigest()[:32]


def session_of(key: str) -> str:
    """The cookie value that stands for a key in a browser; useless without the key's own list on the server."""
    return hmac.new(key.encode(), b"edit-image-service session", hashlib.sha256).hexdigest()


@dataclass(frozen=True)
class Keys:
    """The keys that open the service, the two things derived from each, and those among them that are an operator's."""

    keys: tuple[str, ...]
    admins: tuple[str, ...] = ()

    def administers(self, owner: str) -> bool:
        """Whether this owner may change how the whole service runs; everybody may where no operator is named."""
        return not self.admins or owner in {owner_of(key) for key in self.admins}

    def owner(self, given: str, *, session: bool = False) -> str | None:
        """The owner behind a key or a session cookie; every comparison takes the same time."""
        found = None
        for key in self.keys:
            expected = session_of(key) if session else key
            if hmac.compare_digest(expected.encode(), given.encode("utf-8", "surrogateescape")):
                found = owner_of(key)
        return found


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def host_name(authority: str) -> str | None:
    """The lower-case host of `host[:port]`; None when it is malformed."""
    if not authority or any(character in authority for character in "/\\@?# \t,"):
        return None
    try:
        parts = urlsplit(f"//{authority}")
        _ = parts.port
    except ValueError:
        return None
    return (parts.hostname or "").rstrip(".") or None


class Hosts:
    """The names that a request may use for this server.

    Listening beyond loopback, a plain address is accepted too: rebinding needs a name.
    """

    def __init__(self, bound: str, allowed: Iterable[str]) -> None:
        self.named = {host_name(name) or name.lower() for name in allowed}
        self.known = {"localhost", "127.0.0.1", "::1", bound.strip("[]").lower(), *self.named}
        self.addresses_pass = not is_loopback(bound)

    def allow(self, authority: str) -> bool:
        """Whether this Host header is ours."""
        name = host_name(authority)
        if name is None:
            return False
        if name in self.known:
            return True
        if not self.addresses_pass:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def same_origin(self, origin: str, authority: str) -> bool:
        """Whether an Origin header is the page that this server itself served, or one that the operator named."""
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        if parts.scheme not in {"http", "https"} or not parts.netloc:
            return False
        return parts.netloc.lower() == authority.lower() or host_name(parts.netloc) in self.named


class Posture:
    """ASGI middleware: checks, then `owner` and `admin` in `scope["state"]`, then headers on the answer."""

    def __init__(self, app: ASGIApp, *, hosts: Hosts, keys: Keys) -> None:
        self.app = app
        self.hosts = hosts
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                extra = [pair for pair in SECURITY_HEADERS if pair[0] not in present]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        refusal = self.refuse(scope)
        if refusal is not None:
            await refusal(scope, receive, guarded)
            return
        await self.app(scope, receive, guarded)

    def refuse(self, scope: Scope) -> Response | None:
        """The answer that turns this request away, or None; sets the owner when there is none."""
        headers = Headers(scope=scope)
        if scope["type"] != "http":
            return Refusal("bad_request", "Only plain HTTP is served here.").answer()
        authorities = headers.getlist("host")
        if len(authorities) != 1 or not self.hosts.allow(authorities[0]):
            return Refusal(
                "host_refused", "The Host header names no host of this server; see EIS_ALLOWED_HOSTS."
            ).answer()
        if scope["method"] not in SAFE_METHODS:
            origin = headers.get("origin")
            foreign = origin is not None and not self.hosts.same_origin(origin, authorities[0])
            if foreign or headers.get("sec-fetch-site") == "cross-site":
                return Refusal("origin_refused", "Pages of other sites may not change anything here.").answer()
        owner = ""
        if self.keys.keys:
            found = self.identify(headers)
            if found is None and not self.is_open(scope):
                return self.unauthorised(headers)
            owner = found or ""
        scope.setdefault("state", {}).update(owner=owner, admin=self.keys.administers(owner))
        return None

    def is_open(self, scope: Scope) -> bool:
        return scope["path"] in OPEN_PATHS or scope["path"] == LOGIN_PATH

    def identify(self, headers: Headers) -> str | None:
        """The owner whose key or session cookie the request carries."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and token.strip():
            return self.keys.owner(token.strip())
        if "x-api-key" in headers:
            return self.keys.owner(headers["x-api-key"].strip())
        if "cookie" in headers:
            # Read as browsers write: other servers on this host set cookies that the standard library drops all for.
            cookie = cookie_parser(headers["cookie"]).get(SESSION_COOKIE)
            return self.keys.owner(cookie, session=True) if cookie else None
        return None

    def unauthorised(self, headers: Headers) -> Response:
        """The login for a person's browser, 401 for everybody else."""
        if "text/html" in headers.get("accept", "") and headers.get("sec-fetch-dest", "document") == "document":
            return RedirectResponse(LOGIN_PATH, 303)
        message = "A key is needed: `Authorization: Bearer KEY` or `X-API-Key: KEY`."
        return Refusal("key_required", message, headers={"WWW-Authenticate": "Bearer"}).answer()
