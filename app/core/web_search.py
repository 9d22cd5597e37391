"""Web search: pictures that may serve as references, and facts for a prompt, from the provider that is configured."""

from dataclasses import asdict
from typing import Annotated, Literal

from app.core.capability import Capability, Context, Request, Result
from app.core.fields import field
from app.core.grounding import facts_in, grounded

SearchQuery = Annotated[str, field("What to look for, in plain words.", kind="prompt", min_length=1, max_length=400)]
SearchKind = Annotated[
    Literal["pictures", "text"],
    field("pictures: a wall of pictures with their sources; text: pages, and the facts in them that fit the words."),
]
SearchCount = Annotated[int, field("How many results at most.", ge=1, le=50)]
GroundedPrompt = Annotated[
    str | None,
    field("The prompt that facts are added to, of a search for text; null: the words of the search.", max_length=2000),
]
SafeSearch = Annotated[bool, field("Leave out what is not for everybody, as far as the provider knows it.")]
SearchLanguage = Annotated[
    str | None,
    field("Language of the results, as en or de; null: the provider's own choice.", min_length=2, max_length=5),
]


class WebSearchRequest(Request):
    """Words, and what of the web is meant."""

    query: SearchQuery
    kind: SearchKind = "pictures"
    count: SearchCount = 12
    ground: GroundedPrompt = None
    safe_search: SafeSearch = True
    language: SearchLanguage = None


def run(request: WebSearchRequest, context: Context) -> Result:
    """One request to the provider; of what it found nothing is fetched here."""
    context.progress(0, 1)
    results = context.search(
        request.query,
        kind=request.kind,
        count=request.count,
        safe=request.safe_search,
        language=request.language,
    )
    context.progress(1, 1)
    data = {"query": request.query, "kind": request.kind, "results": results}
    if request.kind == "text":
        facts = facts_in(request.query, results)
        prompt = grounded(request.ground or request.query, facts)
        data["grounding"] = {"prompt": prompt, "facts": [asdict(fact) for fact in facts]}
        context.tell_stage("grounding", prompt)
        data["stages"] = list(context.stages)
    notes = [] if results else ["Nothing was found; fewer or other words may find something."]
    if results and request.kind == "pictures":
        notes.append("Who made a picture may forbid what you mean to do with it: look at its source before you use it.")
    return Result(data=data, notes=notes)


WEB_SEARCH = Capability(
    name="web-search",
    title="Search",
    summary="Search the web for pictures that serve as references, or for facts that ground a prompt.",
    request=WebSearchRequest,
    run=run,
    gives_pictures=False,
    example={"query": "mid-century armchair"},
)
