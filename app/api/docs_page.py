"""`/docs`: the interactive description of the API, from files of an installed package, so that it works offline."""

from importlib.util import find_spec
from pathlib import Path

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import FileResponse, Response

ASSETS = "/docs/assets"


def docs_router(title: str) -> APIRouter:
    """The page and the two files that it loads."""
    router = APIRouter(include_in_schema=False)
    spec = find_spec("fastapi_offline")
    folder = Path(spec.submodule_search_locations[0]) / "static"

    @router.get("/docs")
    def page() -> Response:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=title,
            swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{ASSETS}/favicon.png",
        )

    def serve(name: str, media_type: str) -> None:
        @router.get(f"{ASSETS}/{name}")
        def asset() -> Response:
            return FileResponse(folder / name, media_type=media_type, headers={"Cache-Control": "max-age=86400"})

    serve("swagger-ui-bundle.js", "text/javascript")
    serve("swagger-ui.css", "text/css")
    serve("favicon.png", "image/png")
    return router
