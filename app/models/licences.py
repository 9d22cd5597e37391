"""The terms under which published weights come, and what an answer says of those that limit its use. Plain data."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict

from app.errors import Conflict
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
OPENRAIL = Licence("OpenRAIL", "https://huggingface.co/lllyasviel/ControlNet-v1-1#license", commercial=True, ask=True)
FAIR_AI = Licence(
    "Fair AI Public License 1.0-SD",
    "https://freedevproject.org/faipl-1.0-sd/",
    commercial=True,
    ask=True,
)
"""Who offers a service with it, or a model made from it, shares both under the same terms."""
MIT = Licence("MIT", "https://opensource.org/license/mit", commercial=True)
APACHE = Licence("Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0", commercial=True)
BSD_3 = Licence("BSD-3-Clause", "https://opensource.org/license/bsd-3-clause", commercial=True)
GFPGAN = Licence(
    "Apache-2.0, with parts of StyleGAN2 and DFDNet that are non-commercial",
    "https://github.com/TencentARC/GFPGAN/blob/master/LICENSE",
    commercial=False,
    ask=True,
)
"""The repository's licence lists what it took from StyleGAN2 and DFDNet under their own terms: the stricter hold."""
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
COSXL = Licence(
    "Stability AI Non-Commercial Research Community License",
    "https://huggingface.co/stabilityai/cosxl/blob/main/LICENSE",
    commercial=False,
    ask=True,
)
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


def licence_unaccepted(model: str, licences: Sequence[Licence]) -> Conflict:
    """What answers who asks for weights and has not agreed to the licences that limit their use."""
    names = " and ".join(f"{licence.name} ({licence.url})" for licence in licences)
    return Conflict(
        f"The model {model!r} comes under {names}, which limits its use: read it, and ask again with "
        "accept_licence=true (--accept-licence).",
        model=model,
        licences=[asdict(licence) for licence in licences],
    )
