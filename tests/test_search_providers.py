"""Search providers: what is asked, what is kept of an answer, and what an answer can never lead to."""

import json
from collections.abc import Iterator

import pytest

from app.core.grounding import LONGEST_PROMPT, facts_in, grounded
from app.errors import DependencyMissing, InvalidRequest, SearchOff, ServiceError, Unavailable
from app.guarded_http import Answer, GuardedClient
from app.search_providers import Query, SearchProvider
from tests.searching import PAGE, Searxng, searxng

TEXT, PICTURES = Query("mid-century armchair", "text", 5), Query("chair", "pictures", 5)


@pytest.fixture
def server() -> Iterator[Searxng]:
    with searxng() as known:
        yield known


def asking(server: Searxng) -> SearchProvider:
    return SearchProvider("searxng", server.address + "/", None, GuardedClient([server.trusted]))


def test_searxng_answers_texts(server: Searxng) -> None:
    found = asking(server).search(Query("mid-century armchair", "text", 5, language="en"))
    assert server.asked == [
        {"q": "mid-century armchair", "format": "json", "categories": "general", "safesearch": "2", "language": "en"}
    ]
    assert [one["title"] for one in found] == ["Mid-century armchair", "Armchairs"]
    assert found[0]["source"] == "design.example.org" and found[0]["licence"] is None


def test_searxng_answers_pictures_with_source_and_licence(server: Searxng) -> None:
    found = asking(server).search(PICTURES)
    assert [(one["url"], one["source"], one["licence"], one["width"], one["height"]) for one in found] == [
        (PAGE, "Wikimedia", "CC BY-SA 4.0", 1920, 1080)
    ]
    assert server.asked[0]["categories"] == "images"


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ("javascript:alert(1)", None),
        ("file:///etc/passwd", None),
        ("ftp://a.example.org/", None),
        ("data:text/html,a", None),
        ("https://a.example.org/a b", None),
        ("https://[", None),
        ("https:///nobody", None),
        (7, None),
        ("https://a.example.org/" + "a" * 3000, None),
        ("//a.example.org/x.png", "https://a.example.org/x.png"),
        ("http://a.example.org/x.png", "http://a.example.org/x.png"),
    ],
)
def test_only_urls_of_the_web_are_kept(server: Searxng, told: object, kept: str | None) -> None:
    server.answers["images"] = [{"title": "x", "url": PAGE, "img_src": told}]
    assert [one["image_url"] for one in asking(server).search(PICTURES)] == ([kept] if kept else [])


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"<html>", b'{"results": 7}', b'{"results": [7]}', b'{"other": []}', b'{"results": null}', b"\xff"],
)
def test_an_answer_that_is_no_list_of_results_is_said(server: Searxng, body: bytes) -> None:
    server.body = body or b" "
    with pytest.raises(Unavailable, match="no list of results"):
        asking(server).search(TEXT)


def test_searxng_without_json_is_told_how_to_help_it(server: Searxng) -> None:
    server.status = 403
    with pytest.raises(Unavailable, match=r"search\.formats"):
        asking(server).search(TEXT)


def test_a_provider_that_is_not_there_is_one_clear_error(server: Searxng) -> None:
    gone = SearchProvider("searxng", "http://127.0.0.1:1", None, GuardedClient(["127.0.0.1:1"]))
    with pytest.raises(Unavailable, match="searxng cannot be reached") as told:
        gone.search(TEXT)
    assert told.value.code == "unavailable"  # a failed transfer would be tried again and again


def test_a_private_searxng_must_be_let_in_by_the_operator(server: Searxng) -> None:
    with pytest.raises(ServiceError):
        SearchProvider("searxng", server.address, None, GuardedClient()).search(TEXT)
    assert not server.hits


def test_searxng_cannot_send_the_service_elsewhere(server: Searxng) -> None:
    server.redirect = f"{server.canary}/inside"
    with pytest.raises(ServiceError):
        asking(server).search(TEXT)
    assert server.hits["/search"] == 1 and not server.canary_hits


def test_nothing_is_configured_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(*told: object, **named: object) -> None:
        raise AssertionError("a request left")

    monkeypatch.setattr("socket.socket.connect", touched)
    monkeypatch.setattr("socket.getaddrinfo", touched)
    with pytest.raises(SearchOff, match="EIS_SEARCH_PROVIDER"):
        SearchProvider(None, None, None, GuardedClient()).search(TEXT)


@pytest.mark.parametrize(
    ("name", "url", "key", "said"),
    [
        ("searxng", None, None, "EIS_SEARCH_URL"),
        ("brave", None, None, "EIS_SEARCH_KEY"),
        ("tavily", None, "", "EIS_SEARCH_KEY"),
        ("elsewhere", None, None, "EIS_SEARCH_PROVIDER"),
    ],
)
def test_what_a_provider_needs_is_said_at_the_start(name: str, url: str | None, key: str | None, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        SearchProvider(name, url, key, GuardedClient())


class Recorded(GuardedClient):
    """The published shapes of Brave's and Tavily's answers; both speak from public hosts alone."""

    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer, self.asked = json.dumps(answer).encode(), []

    def get_bytes(self, url, **named):
        self.asked.append((url, named))
        return self.answer

    def post(self, url, **named):
        self.asked.append((url, named))
        return Answer(200, {}, self.answer)


def test_brave_gets_its_key_in_a_header_and_nowhere_else() -> None:
    text = {"web": {"results": [{"title": "<strong>A</strong> chair", "url": PAGE, "description": "It &amp; that"}]}}
    client = Recorded(text)
    found = SearchProvider("brave", None, "secret", client).search(TEXT)
    ((url, named),) = client.asked
    assert url.startswith("https://api.search.brave.com/res/v1/web/search?q=mid-century+armchair&count=5")
    assert named["headers"]["x-subscription-token"] == "secret" and "secret" not in url
    assert (found[0]["title"], found[0]["text"]) == ("A chair", "It & that")
    pictures = {"results": [{"title": "A", "url": PAGE, "source": "commons", "thumbnail": {"src": "https://t.example/1"},
                             "properties": {"url": "https://i.example/1.png", "width": 5, "height": 6}}]}  # fmt: skip
    (one,) = SearchProvider("brave", None, "secret", Recorded(pictures)).search(PICTURES)
    assert (one["image_url"], one["thumbnail_url"]) == ("https://i.example/1.png", "https://t.example/1")
    assert (one["width"], one["height"]) == (5, 6)


def test_tavily_is_asked_by_post_with_its_key_in_a_header() -> None:
    client = Recorded({"results": [{"title": "A", "url": PAGE, "content": "words"}]})
    found = SearchProvider("tavily", None, "secret", client).search(TEXT)
    ((url, named),) = client.asked
    assert url == "https://api.tavily.com/search" and named["headers"]["authorization"] == "Bearer secret"
    assert json.loads(named["content"]) == {"query": "mid-century armchair", "max_results": 5}
    assert found[0]["text"] == "words"
    told = {"images": ["https://i.example/1.png", {"url": "https://i.example/2.png", "description": "Two"}]}
    found = SearchProvider("tavily", None, "secret", Recorded(told)).search(PICTURES)
    assert [(one["image_url"], one["title"]) for one in found] == [
        ("https://i.example/1.png", "i.example"),
        ("https://i.example/2.png", "Two"),
    ]


def test_ddgs_names_its_extra_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ddgs", None)
    with pytest.raises(DependencyMissing, match=r"edit-image-service\[search\]"):
        SearchProvider("ddgs", None, None, GuardedClient()).search(TEXT)


def test_facts_are_sentences_that_speak_of_what_was_asked(server: Searxng) -> None:
    facts = facts_in(TEXT.words, asking(server).search(TEXT))
    assert [fact.text for fact in facts] == ["A mid-century armchair has tapered teak legs and low, wide cushions"]
    assert facts[0].url == "https://design.example.org/armchairs"
    assert grounded("an armchair in a hall.", facts) == f"an armchair in a hall. {facts[0].text}"
    assert grounded("a hall", []) == "a hall"


def test_a_grounded_prompt_weighs_no_words_and_stays_short() -> None:
    results = [
        {"url": PAGE, "source": f"source {at}",
         "text": f"The (secret:1.9) lighthouse {at} <lora:x:1> stands {'very ' * 30}tall [over|under] rocks {at}."}
        for at in range(9)
    ]  # fmt: skip
    facts = facts_in("lighthouse", results)
    prompt = grounded("lighthouse", facts)
    assert facts and len(prompt) <= LONGEST_PROMPT
    assert not set(prompt) & set("()[]<>|{}")
