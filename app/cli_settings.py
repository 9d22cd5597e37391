"""Settings as the shell reads them: a wrong one is a sentence, not a stack trace."""

from typing import Any

from pydantic import ValidationError

from app.core.capability import Capability
from app.core.engine_options import load_catalog
from app.errors import InvalidRequest
from app.settings import Settings


def read_settings(**flags: Any) -> Settings:
    """The settings of the environment; flags that were given win."""
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        name = "_".join(str(part) for part in problem["loc"])
        raise InvalidRequest(f"EIS_{name.upper()}: {problem['msg']}.") from None


def served_catalog() -> tuple[Capability, ...]:
    """The capabilities that EIS_CATALOG names."""
    return load_catalog(read_settings().catalog)
