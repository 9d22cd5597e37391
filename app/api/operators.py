"""What only an operator's key may do where EIS_ADMIN_KEYS names some: change how the whole service runs."""

from typing import Any

from fastapi import Depends
from fastapi import Request as HttpRequest

from app.api.schemas import ErrorAnswer, documented
from app.errors import NotPermitted

REFUSED: dict[int | str, dict[str, Any]] = {
    403: documented(ErrorAnswer, "Host or Origin is refused, or the key is none of EIS_ADMIN_KEYS.")
}


def require_admin(request: HttpRequest) -> None:
    """`NotPermitted` unless the key behind the request is one of the operator's, or none are named."""
    if not request.state.admin:
        raise NotPermitted("Only a key that EIS_ADMIN_KEYS names may do this.")


ADMIN = [Depends(require_admin)]
"""The dependencies of such a route."""
