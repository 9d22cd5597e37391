"""The catalog that the benchmark serves: the product's own and one that does nothing."""

from app.core.capability import Capability, Context, Request, Result
from app.core.catalog import CATALOG as PRODUCT


class NothingRequest(Request):
    """No wish at all."""


def run(request: NothingRequest, context: Context) -> Result:
    """Answer at once."""
    return Result(data={"done": True})


NOTHING = Capability(name="nothing", title="Nothing", summary="Answer at once.", request=NothingRequest, run=run)
CATALOG = (*PRODUCT, NOTHING)
CATALOG_WITHOUT_MODELS = (NOTHING,)
