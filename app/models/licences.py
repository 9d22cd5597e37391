"""The terms under which published weights come, and what an answer says of those that limit its use. Plain data."""

from collections.abc import Iterable

from app.models.spec import Licence, ModelSpec

OPENRAIL_M = Licence(
    "CreativeML OpenRAIL-M",
    "https://huggingface.co/spaces/CompVis/stable-diffusion-license",
    commercial=True,
    ask=True,
)
OPENRAIL_PLUS = Licence(
    "CreativeML Open RAIL++-M",
    "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/blob/main/LICENSE.md",
    commercial=True,
    ask=True,
)
MIT = Licence("MIT", "https://opensource.org/license/mit", commercial=True)
APACHE = Licence("Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0", commercial=True)
INSIGHTFACE = Licence(
    "insightface, non-commercial research only",
    "https://github.com/deepinsight/insightface#license",
    commercial=False,
    ask=True,
)
INSTANTID = Licence(
    "InstantID, research only",
    "https://huggingface.co/InstantX/InstantID#disclaimer",
    commercial=False,
    ask=True,
)
"""The repository is tagged Apache-2.0, and its page states that the weights are for research: the stricter holds."""
FACEID = Licence(
    "IP-Adapter-FaceID, non-commercial",
    "https://huggingface.co/h94/IP-Adapter-FaceID",
    commercial=False,
    ask=True,
)


def licence_notes(specs: Iterable[ModelSpec]) -> list[str]:
    """One sentence for each licence among these models that keeps a result from commercial use; none where none does.

    What a user added without saying its terms is passed over: nothing is known of it.
    """
    by_licence: dict[Licence, list[str]] = {}
    for spec in specs:
        if spec.licence.ask and not spec.licence.commercial:
            models = by_licence.setdefault(spec.licence, [])
            if spec.id not in models:
                models.append(spec.id)
    return [
        f"Made with {', '.join(models)}, whose licence allows no commercial use: {licence.name} ({licence.url})."
        for licence, models in by_licence.items()
    ]
