"""A browser cannot send a key by itself, so a person types one once and a cookie stands for it.

The cookie holds a keyed hash, not the key; it is kept from scripts and from other sites.
"""

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.responses import HTMLResponse, RedirectResponse, Response

from app.api.posture import LOGIN_PATH, SESSION_COOKIE, Keys, session_of

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<link rel="icon" href="data:,"><title>Edit Image Service</title>
<style>body{{font:16px system-ui,sans-serif;display:grid;place-items:center;min-height:90vh;margin:0;
background:Canvas;color:CanvasText;color-scheme:light dark}}form{{display:grid;gap:.8em;width:20em}}
input,button{{font:inherit;padding:.6em;border-radius:.4em;border:1px solid GrayText}}</style>
<form method="post" action="{path}"><h1>Edit Image Service</h1><label for="key">Key{note}</label>
<input id="key" name="key" type="password" autocomplete="current-password" autofocus required>
<button>Log in</button></form></html>"""


def login_router(keys: Keys) -> APIRouter:
    """`GET` and `POST /login`; without keys it leads straight to the page."""
    router = APIRouter(include_in_schema=False)

    @router.get(LOGIN_PATH)
    def ask() -> Response:
        return HTMLResponse(PAGE.format(path=LOGIN_PATH, note="")) if keys.keys else RedirectResponse("/", 303)

    @router.post(LOGIN_PATH)
    async def log_in(request: HttpRequest) -> Response:
        async with request.form(max_files=0, max_fields=1) as form:
            key = form.get("key")
        if not isinstance(key, str) or keys.owner(key) is None:
            return HTMLResponse(PAGE.format(path=LOGIN_PATH, note=": this one is not known"), 401)
        response = RedirectResponse("/", 303)
        secure = request.url.scheme == "https"
        response.set_cookie(SESSION_COOKIE, session_of(key), httponly=True, samesite="strict", secure=secure)
        return response

    return router
