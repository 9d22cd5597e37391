"""Host, Origin and key checks; headers; each key sees its own."""

import pytest

from app.api.posture import Hosts, Keys, owner_of, session_of
from tests.api.conftest import picture
from tests.api.serving import Running, serving
from tests.api.test_capabilities import PAINT

KEY, OTHER = "correct horse battery staple", "another long key"


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "evil.example:7860", "192.168.1.5",
             "127.0.0.1@evil.example", "evil.example#127.0.0.1", "", "127.0.0.1, evil.example", "0.0.0.0"]
)  # fmt: skip
def test_a_foreign_host_is_refused(server: Running, host: str) -> None:
    for method, path in (("GET", "/api/v1/jobs"), ("POST", PAINT), ("GET", "/health"), ("GET", "/")):
        answer = server.client.request(method, path, headers={"host": host})
        assert answer.status_code in {400, 403}, (method, path)
        if answer.status_code == 403:
            assert answer.json()["error"]["code"] == "host_refused"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:7860", "localhost."])
def test_own_names_pass(server: Running, host: str) -> None:
    assert server.client.get("/api/v1/jobs", headers={"host": host}).status_code == 200


FOREIGN = [
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "http://localhost:1"},
    {"origin": "http://127.0.0.1.evil.example"},
    {"origin": "file://"},
    {"origin": ""},
    {"sec-fetch-site": "cross-site"},
    {"origin": "chrome-extension://abc"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_a_page_of_another_site_changes_nothing(server: Running, headers: dict[str, str]) -> None:
    before = server.stored()
    for method, path in (
        ("POST", PAINT), ("POST", "/api/v1/images"), ("DELETE", "/api/v1/models/pocket"), ("PUT", "/"),
        ("POST", "/api/v1/jobs/x/cancel"), ("PATCH", "/api/v1/jobs"), ("POST", "/gradio_api/queue/join"),
    ):  # fmt: skip
        answer = server.client.request(method, path, headers=headers)
        assert answer.status_code == 403 and answer.json()["error"]["code"] == "origin_refused", (method, path)
    assert server.stored() == before
    assert server.client.get("/api/v1/jobs", headers=headers).status_code == 200
    assert "access-control-allow-origin" not in server.client.get("/api/v1/jobs", headers=headers).headers


def test_the_own_page_and_the_shell_pass(server: Running) -> None:
    for headers in ({"origin": server.address, "sec-fetch-site": "same-origin"}, {}, {"sec-fetch-site": "none"}):
        assert server.client.post(PAINT, json={}, headers=headers).status_code == 200


def test_every_answer_carries_the_security_headers(server: Running) -> None:
    for path in ("/health", "/api/v1/jobs", "/none-such", "/docs", "/openapi.json"):
        headers = server.client.get(path).headers
        assert (
            headers["x-content-type-options"] == "nosniff"
            and "frame-ancestors 'self'" in headers["content-security-policy"]
        )
        assert "server" not in headers


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory):
    with serving(tmp_path_factory.mktemp("keyed"), api_keys=(KEY, OTHER)) as running:
        yield running


CARRIED = [{"authorization": f"Bearer {KEY}"}, {"authorization": f"bearer  {KEY}"}, {"x-api-key": KEY}]


@pytest.mark.parametrize("headers", CARRIED, ids=str)
def test_a_key_opens(keyed: Running, headers: dict[str, str]) -> None:
    assert keyed.client.get("/api/v1/jobs", headers=headers).status_code == 200
    assert keyed.client.post(PAINT, json={}, headers=headers).status_code == 200


WRONG = [
    {}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {KEY}"}, {"x-api-key": ""}, {"authorization": ""},
    {"x-api-key": KEY[:-1]}, {"cookie": f"eis_session={KEY}"}, {"cookie": "eis_session=0"}, {"cookie": "===;;;"},
]  # fmt: skip


@pytest.mark.parametrize("headers", WRONG, ids=str)
def test_without_the_key_everything_but_health_is_401(keyed: Running, headers: dict[str, str]) -> None:
    before = keyed.stored()
    for method, path in (
        ("GET", "/api/v1/jobs"), ("POST", PAINT), ("GET", "/metrics"), ("GET", "/ready"), ("GET", "/docs"),
        ("GET", "/"),
        ("GET", "/openapi.json"), ("GET", "/none-such"), ("POST", "/api/v1/images"), ("GET", "/gradio_api/info"),
    ):  # fmt: skip
        answer = keyed.client.request(method, path, headers=headers)
        assert answer.status_code == 401 and answer.json()["error"]["code"] == "key_required", (method, path)
        assert KEY not in answer.text and "bearer" in answer.headers["www-authenticate"].lower()
    assert keyed.client.get("/health", headers=headers).status_code == 200
    assert keyed.stored() == before


def test_the_host_is_checked_before_the_key(keyed: Running) -> None:
    answer = keyed.client.get("/api/v1/jobs", headers={"host": "evil.example", "x-api-key": KEY})
    assert answer.status_code == 403


def test_another_keys_things_do_not_exist(keyed: Running) -> None:
    mine, other = {"x-api-key": KEY}, {"x-api-key": OTHER}
    job = keyed.client.post(PAINT, json={"prompt": "mine alone"}, headers=mine).json()
    image = job["result"]["images"][0]
    upload = keyed.client.post("/api/v1/images", files={"image": ("a", picture())}, headers=mine).json()
    for method, path in (
        ("GET", job["links"]["self"]), ("DELETE", job["links"]["self"]), ("POST", job["links"]["cancel"]),
        ("POST", f"{job['links']['self']}/retry"), ("GET", job["links"]["events"]), ("GET", image["url"]),
        ("GET", f"{image['url']}/thumbnail"), ("GET", f"{image['url']}/metadata"), ("DELETE", image["url"]),
        ("GET", upload["url"]), ("DELETE", upload["url"]),
    ):  # fmt: skip
        answer = keyed.client.request(method, path, headers=other)
        unknown = keyed.client.request(
            method,
            path.replace(job["id"], "0" * 26).replace(image["id"], "0" * 26).replace(upload["id"], "0" * 26),
            headers=other,
        )
        assert answer.status_code == 404 and answer.json() == unknown.json(), (method, path)
    wish = {"image": upload["id"]}
    assert keyed.client.post("/api/v1/test/copy", json=wish, headers=other).status_code == 404
    assert keyed.client.post("/api/v1/test/copy", json=wish, headers=mine).status_code == 200
    assert not [one for one in keyed.client.get("/api/v1/jobs", headers=other).json()["jobs"] if one["id"] == job["id"]]
    assert keyed.client.get("/api/v1/images?prompt=mine", headers=other).json()["total"] == 0
    assert keyed.client.get("/api/v1/images?prompt=mine", headers=mine).json()["total"] == 1


def test_the_same_idempotency_key_of_two_callers_are_two_jobs(keyed: Running) -> None:
    ids = {
        keyed.client.post(PAINT, json={}, headers={"x-api-key": key, "idempotency-key": "same"}).json()["id"]
        for key in (KEY, OTHER)
    }
    assert len(ids) == 2


def test_a_person_logs_in_once(keyed: Running) -> None:
    browser = {"accept": "text/html", "sec-fetch-dest": "document"}
    sent = keyed.client.get("/", headers=browser)
    assert sent.status_code == 303 and sent.headers["location"] == "/login"
    page = keyed.client.get("/login")
    assert page.status_code == 200 and 'name="key"' in page.text
    assert keyed.client.post("/login", data={"key": "wrong"}).status_code == 401
    cross = keyed.client.post("/login", data={"key": KEY}, headers={"origin": "https://evil.example"})
    assert cross.status_code == 403
    answer = keyed.client.post("/login", data={"key": KEY})
    assert answer.status_code == 303 and answer.headers["location"] == "/"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "samesite=strict" in cookie.lower() and KEY not in cookie
    keyed.client.cookies.clear()
    carried = {"cookie": cookie.split(";")[0]}
    assert keyed.client.get("/api/v1/jobs", headers=carried).status_code == 200
    assert keyed.client.post(PAINT, json={}, headers=carried | {"origin": "https://evil.example"}).status_code == 403


@pytest.mark.parametrize("foreign", ['prefs={"a":1}', "a[0]=b", "a=b c", "naked", "a=\xe9", "=", 'q="x; y=z"'])
def test_cookies_of_other_servers_do_not_break_the_login(keyed: Running, foreign: str) -> None:
    session = f"eis_session={session_of(KEY)}"
    for cookie in (f"{foreign}; {session}", f"{session}; {foreign}"):
        answer = keyed.client.get("/api/v1/jobs", headers={"cookie": cookie.encode("latin-1")})
        assert answer.status_code == 200, cookie
    assert keyed.client.get("/api/v1/jobs", headers={"cookie": foreign.encode("latin-1")}).status_code == 401


def test_an_owner_and_a_session_hide_the_key() -> None:
    assert len({KEY, owner_of(KEY), session_of(KEY), owner_of(OTHER), session_of(OTHER)}) == 5
    keys = Keys((KEY, OTHER))
    assert keys.owner(KEY) == owner_of(KEY) != keys.owner(OTHER)
    assert keys.owner(session_of(KEY)) is None and keys.owner(KEY, session=True) is None
    assert keys.owner("\udcff") is None and keys.owner("") is None and Keys(()).owner("") is None


def test_names_beyond_loopback() -> None:
    hosts = Hosts("0.0.0.0", ("images.example.org", "Other.Example:8443"))
    for name in ("images.example.org", "IMAGES.example.org:443", "other.example", "192.168.1.5:7860", "[fd00::1]:80"):
        assert hosts.allow(name), name
    for name in ("evil.example", "images.example.org.evil.example", "", "a b", "[::1", "x:y:z"):
        assert not hosts.allow(name), name
    assert hosts.same_origin("https://images.example.org", "10.0.0.2:7860")
    assert not hosts.same_origin("https://evil.example", "10.0.0.2:7860")
    assert not Hosts("127.0.0.1", ()).allow("192.168.1.5")
