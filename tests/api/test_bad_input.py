"""Bad input gets a clear 4xx, says nothing of the server or of the input, and changes nothing."""

import base64
import socket
import struct
import time
import zlib
from collections.abc import Iterator

import httpx
import pytest

from tests.api.conftest import picture
from tests.api.serving import Running

MARK = "Zyzzyva"
PAINT = "/api/v1/test/paint"
DRAW = "/api/v1/text-to-image"


@pytest.fixture(autouse=True)
def unchanged(server: Running) -> Iterator[None]:
    """Whatever a test here sends: afterwards the server holds what it held before."""
    before = server.stored()
    yield
    assert server.stored() == before


def check(answer: httpx.Response, status: int, code: str) -> dict:
    """The uniform body with this status and code, without the input, a path or a trace in it."""
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "details"}
    assert error["code"] == code, error
    assert error["message"].endswith((".", "!")) or len(error["message"]) < 300
    for forbidden in (MARK, "Traceback", "/home/", "/tmp", ".py", "127.0.0.1"):
        assert forbidden not in answer.text
    return error


def post_raw(server: Running, body: bytes, path: str = PAINT, kind: str = "application/json") -> httpx.Response:
    return server.client.post(path, content=body, headers={"content-type": kind})


def png_of_size(width: int, height: int) -> bytes:
    """A valid grey PNG of one colour, made without holding its pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    packer = zlib.compressobj(9)
    row = b"\0" * (width // 8 + 2)
    data = b"".join(packer.compress(row[: (width + 7) // 8 + 1]) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


NOT_JSON = {
    "nan": b'{"step_seconds": NaN}',
    "infinity": b'{"step_seconds": -Infinity}',
    "infinite number": b'{"step_seconds": 1e999}',
    "lone surrogate": b'{"prompt": "\\ud800 Zyzzyva"}',
    "lone surrogate in a key": b'{"\\udfff": 1}',
    "nul": b'{"prompt": "a\\u0000b"}',
    "duplicate key": b'{"seed": 1, "seed": 2}',
    "deep": b'{"prompt": ' + b"[" * 40 + b"]" * 40 + b"}",
    "very deep": b'{"prompt": ' + b"[" * 100_000,
    "65 bits": b'{"seed": 36893488147419103232}',
    "many digits": b'{"seed": ' + b"9" * 5000 + b"}",
    "not utf-8": b'{"prompt": "\xff\xfe"}',
    "utf-16": '{"prompt": "a"}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"prompt": "a"}',
    "cut off": b'{"prompt": "Zyzzyva',
    "empty": b"",
    "no quotes": b"{prompt: 1}",
    "countless": b'{"prompt": [' + b"[]," * 300_000 + b"1]}",
    "trailing": b"{} {}",
}


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_what_is_not_json_is_400(server: Running, body: bytes) -> None:
    check(post_raw(server, body), 400, "invalid_json")


@pytest.mark.parametrize("body", [b"[]", b'"a"', b"1", b"null", b"true"])
def test_json_that_is_no_object_is_422(server: Running, body: bytes) -> None:
    check(post_raw(server, body), 422, "invalid_request")


WRONG_FIELDS = {
    "unknown field": {"prompt": "a", "Unknown": 1},
    "wrong type": {"prompt": {"a": MARK}},
    "text for a number": {"prompt": "a", "num_inference_steps": MARK},
    "below": {"prompt": "a", "num_inference_steps": 0},
    "above": {"prompt": "a", "guidance_scale": 1e9},
    "not a multiple": {"prompt": "a", "width": 129},
    "not a word": {"prompt": "a", "scheduler": MARK},
    "fraction": {"prompt": "a", "seed": 1.5},
    "negative seed": {"prompt": "a", "seed": -1},
    "true for a number": {"prompt": "a", "num_inference_steps": True},
    "false for a seed": {"prompt": "a", "seed": False},
    "true for a fraction": {"prompt": "a", "guidance_scale": True},
    "digits in a text": {"prompt": "a", "seed": "1"},
    "digits with underscores": {"prompt": "a", "seed": "1_000"},
    "a fraction in a text": {"prompt": "a", "guidance_scale": "7.5"},
    "1 for a tick": {"prompt": "a", "vae_tiling": 1},
    "a word for a tick": {"prompt": "a", "vae_tiling": "yes"},
    "a text for an inner number": {"prompt": "a", "loras": [{"model": "a", "weight": "1"}]},
    "too many": {"prompt": "a", "num_images_per_prompt": 10**6},
    "missing": {},
    "null": {"prompt": None},
    "list of junk": {"prompt": "a", "loras": [1, 2]},
    "unknown inner field": {"prompt": "a", "loras": [{"model": "a", "Scale": 1}]},
    "long": {"prompt": "a" * 20_000},
}


@pytest.mark.parametrize("body", WRONG_FIELDS.values(), ids=WRONG_FIELDS.keys())
def test_a_wrong_field_is_422_and_is_named(server: Running, body: dict) -> None:
    error = check(server.client.post(DRAW, json=body), 422, "invalid_request")
    assert error["details"]["errors"][0]["field"]


@pytest.mark.parametrize(
    "query", ["wait=-1", "wait=601", "wait=nan", "wait=Zyzzyva", "priority=11", "priority=1.5", "wiat=5", "wait="]
)
def test_wrong_query_is_422(server: Running, query: str) -> None:
    check(server.client.post(f"{PAINT}?{query}", json={}), 422, "invalid_request")


@pytest.mark.parametrize("kind", ["text/plain", "application/xml", "image/png", "application/x-www-form-urlencoded"])
def test_other_bodies_are_415(server: Running, kind: str) -> None:
    check(post_raw(server, b"{}", kind=kind), 415, "unsupported_media_type")


def test_a_body_without_a_type_is_415(server: Running) -> None:
    request = server.client.build_request("POST", PAINT, content=b"{}")
    request.headers.pop("content-type", None)
    check(server.client.send(request), 415, "unsupported_media_type")


def test_picture_of_88_megapixels_is_413(server: Running) -> None:
    bomb = png_of_size(9400, 9400)
    assert len(bomb) < 300_000
    check(post_raw(server, bomb, "/api/v1/images", "image/png"), 413, "too_large")
    body = {"prompt": "a", "image": base64.b64encode(bomb).decode()}
    check(server.client.post("/api/v1/image-to-image", json=body), 413, "too_large")


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>'


@pytest.mark.parametrize("data", [SVG, b"GIF89a" + b"\0" * 40, b"not a picture", b"%PDF-1.4"], ids=repr)
def test_other_picture_types_are_415(server: Running, data: bytes) -> None:
    check(server.client.post("/api/v1/images", files={"image": ("a.png", data, "image/png")}), 415, "unreadable_image")
    files = {"image": ("a.png", data, "image/png")}
    check(server.client.post("/api/v1/image-to-image", data={"prompt": "a"}, files=files), 415, "unreadable_image")


def test_a_broken_picture_is_refused(server: Running) -> None:
    answer = server.client.post("/api/v1/images", files={"image": ("a.png", picture((400, 400))[:300], "image/png")})
    check(answer, 422, "unreadable_image")


def test_an_empty_picture_is_422(server: Running) -> None:
    check(server.client.post("/api/v1/images", files={"image": ("a.png", b"", "image/png")}), 422, "invalid_request")


def test_mask_of_another_size_is_422_with_both_sizes(server: Running) -> None:
    files = {"image": ("a.png", picture((64, 64))), "mask_image": ("m.png", picture((32, 64), "white", "L"))}
    error = check(server.client.post("/api/v1/inpaint", data={"prompt": "a"}, files=files), 422, "mask_mismatch")
    assert "64x64" in error["message"] and "32x64" in error["message"]


def test_pictures_of_a_refused_wish_are_not_kept(server: Running) -> None:
    files = {"image": ("a.png", picture((64, 64)))}
    check(
        server.client.post("/api/v1/image-to-image", data={"prompt": "a", "model": "no-such"}, files=files),
        404,
        "unknown_model",
    )


def test_unknown_model_is_404(server: Running) -> None:
    check(server.client.post(DRAW, json={"prompt": "a", "model": MARK.lower()}), 404, "unknown_model")


def test_model_that_is_not_installed_is_409_with_the_line(server: Running) -> None:
    error = check(server.client.post(DRAW, json={"prompt": "a", "model": "sdxl"}), 409, "weights_missing")
    assert "eis models pull sdxl" in error["message"]


NOT_PICTURES = {
    "unknown reference": ("0" * 26, 404, "unknown_image"),
    "not base64": ("Zyzzyva!", 422, "invalid_request"),
    "data uri without base64": ("data:image/png,abc", 422, "invalid_request"),
    "empty data uri": ("data:image/png;base64,", 422, "invalid_request"),
    "base64 of text": (base64.b64encode(b"hello there").decode(), 415, "unreadable_image"),
    "path": ("../../etc/passwd", 422, "invalid_request"),
    "file url": ("file:///etc/passwd", 422, "invalid_request"),
    "ftp url": ("ftp://example.com/a.png", 422, "invalid_request"),
    "empty": ("", 422, "invalid_request"),
}


@pytest.mark.parametrize(("given", "status", "code"), NOT_PICTURES.values(), ids=NOT_PICTURES.keys())
def test_what_is_no_picture(server: Running, given: str, status: int, code: str) -> None:
    check(server.client.post("/api/v1/test/copy", json={"image": given}), status, code)


@pytest.mark.parametrize("given", [1, True, [], {}, ["a"], None])
def test_a_picture_is_a_text(server: Running, given: object) -> None:
    check(server.client.post("/api/v1/test/copy", json={"image": given}), 422, "invalid_request")


LOOPBACK = [
    "127.0.0.1", "127.1", "0x7f.1", "0x7f000001", "2130706433", "0177.0.0.1", "017700000001", "127.0.0.1.", "localhost",
    "LOCALHOST", "localhost.", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]",
    "①②⑦.0.0.1", "\uff11\uff12\uff17.0.0.1", "127。0。0。1", "0.0.0.0", "[::]", "user@127.0.0.1",
    "example.com@127.0.0.1",
    "169.254.169.254", "10.0.0.1", "[fe80::1]", "127.0.0.1%2f@example.com",
]  # fmt: skip


@pytest.mark.parametrize("host", LOOPBACK)
def test_urls_to_this_machine_are_refused_in_any_spelling(server: Running, host: str) -> None:
    for scheme in ("http", "https"):
        url = f"{scheme}://{host}:{server.port}/health"
        body = {"image": url}
        check(server.client.post("/api/v1/test/copy", json=body), 422, "url_not_allowed")
        answer = server.client.post(PAINT, params={"callback_url": url}, json={})
        check(answer, 422, "url_not_allowed")


@pytest.mark.parametrize("url", ["http://images.example.org/a.png", "https://images.example.org:0/a.png"])
def test_plain_http_and_port_0_are_refused_before_a_name_is_resolved(
    server: Running, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolver(*_: object) -> list[str]:
        raise AssertionError("the resolver was asked")

    monkeypatch.setattr("app.guarded_http.resolve", resolver)
    check(server.client.post("/api/v1/test/copy", json={"image": url}), 422, "url_not_allowed")
    check(server.client.post("/api/v1/images", json={"image": url}), 422, "url_not_allowed")
    check(server.client.post(PAINT, params={"callback_url": url}, json={}), 422, "url_not_allowed")


@pytest.mark.parametrize(("number", "status", "code"), [
    (socket.EAI_NONAME, 422, "url_not_allowed"), (socket.EAI_AGAIN, 503, "transfer_failed"),
])  # fmt: skip
def test_a_host_that_does_not_exist_is_no_failure_of_the_server(
    server: Running, number: int, status: int, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo

    def resolver(host: str, *arguments: object, **options: object) -> list:
        if host != "images.example.org":
            return real(host, *arguments, **options)
        raise socket.gaierror(number, "as the system says it")

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    url = "https://images.example.org/a.png"
    for answer in (
        server.client.post("/api/v1/test/copy", json={"image": url}),
        server.client.post(PAINT, params={"callback_url": url}, json={}),
    ):
        check(answer, status, code)
        assert ("retry-after" in answer.headers) == (status == 503)


def test_two_gigabytes_are_refused_before_they_come(server: Running) -> None:
    began = time.monotonic()
    headers = {"content-type": "application/json", "content-length": str(2 * 2**30)}

    def drip() -> Iterator[bytes]:
        sent = 0
        while sent < 64 * 2**20:
            sent += 2**16
            yield b" " * 2**16

    try:
        answer = server.client.post(PAINT, content=drip(), headers=headers)
        check(answer, 413, "too_large")
    except httpx.WriteError:
        pytest.fail("the connection was closed before the answer could be read")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x", "image/png"])
def test_a_chunked_body_is_cut_off_at_the_limit(server: Running, kind: str) -> None:
    limit, sent = 64 * 2**20, 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        if kind.startswith("multipart"):
            yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        while sent < 2**31:
            sent += 2**20
            yield b" " * 2**20

    path = "/api/v1/images" if kind == "image/png" else "/api/v1/test/copy"
    try:
        answer = server.client.post(path, content=endless(), headers={"content-type": kind})
        check(answer, 413, "too_large")
    except httpx.WriteError:
        pass
    assert sent < limit + 32 * 2**20


FORMS = {
    "no boundary": ("multipart/form-data", b"--x\r\n", 400, "bad_request"),
    "cut off": (
        "multipart/form-data; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="prompt',
        400,
        "bad_request",
    ),
    "cut off in a value": (
        "multipart/form-data; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nZyzzyva',
        400,
        "bad_request",
    ),
    "no name": (
        "multipart/form-data; boundary=x",
        b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--",
        400,
        "bad_request",
    ),
    "twice": (
        "multipart/form-data; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="seed"\r\n\r\n1\r\n' * 2 + b"--x--\r\n",
        400,
        "bad_request",
    ),
    "nul": (
        "multipart/form-data; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na\0b\r\n--x--\r\n',
        400,
        "invalid_json",
    ),
    "not a number": (
        "multipart/form-data; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="seed"\r\n\r\nZyzzyva\r\n--x--\r\n',
        422,
        "invalid_request",
    ),
    "file for a text": (
        "multipart/form-data; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="prompt"; filename="a"\r\n\r\nZyzzyva\r\n--x--\r\n',
        422,
        "invalid_request",
    ),
    "nan": (
        "multipart/form-data; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="step_seconds"\r\n\r\nnan\r\n--x--\r\n',
        422,
        "invalid_request",
    ),
}


for value in (b"1_000", b" 1", b"1.0", b"\xd9\xa1", b"true", b"0x10", b"1" * 30):
    FORMS[f"{value!r} for a number"] = (
        "multipart/form-data; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="seed"\r\n\r\n' + value + b"\r\n--x--\r\n",
        422,
        "invalid_request",
    )
for declared in ("", "; charset=latin-1", "; charset=utf-7"):
    FORMS[f"not utf-8{declared}"] = (
        f"multipart/form-data; boundary=x{declared}",
        b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na\xe9b\r\n--x--\r\n',
        400,
        "bad_request",
    )


@pytest.mark.parametrize(("kind", "body", "status", "code"), FORMS.values(), ids=FORMS.keys())
def test_broken_forms(server: Running, kind: str, body: bytes, status: int, code: str) -> None:
    check(post_raw(server, body, kind=kind), status, code)


@pytest.mark.parametrize("part", ["", "/events", "/cancel", "/retry"])
@pytest.mark.parametrize("id", ["nothing", "0" * 26, "..%2f..%2fetc", "%00", "a" * 5000])
def test_unknown_jobs_are_404(server: Running, id: str, part: str) -> None:
    method = "POST" if part in {"/cancel", "/retry"} else "GET"
    answer = server.client.request(method, f"/api/v1/jobs/{id}{part}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] in {"unknown_job", "not_found"}


@pytest.mark.parametrize("part", ["", "/thumbnail", "/metadata"])
@pytest.mark.parametrize("id", ["nothing", "0" * 26, "..%2f..%2fetc%2fpasswd", "%00", "jobs.sqlite"])
def test_unknown_pictures_are_404(server: Running, id: str, part: str) -> None:
    answer = server.client.get(f"/api/v1/images/{id}{part}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] in {"unknown_image", "not_found"}


def test_unknown_models_are_404(server: Running) -> None:
    check(server.client.get("/api/v1/models/none-such"), 404, "unknown_model")
    check(server.client.post("/api/v1/models/none-such/pull"), 404, "unknown_model")
    check(server.client.delete("/api/v1/models/none-such"), 404, "unknown_model")


def test_unknown_address_and_method(server: Running) -> None:
    check(server.client.get("/api/v1/none-such"), 404, "not_found")
    answer = server.client.put(PAINT, json={})
    check(answer, 405, "method_not_allowed")
    assert "POST" in answer.headers["allow"]


def test_a_model_file_that_is_no_model_is_refused(server: Running) -> None:
    installed = server.client.get("/api/v1/models?installed=true").json()["total"]
    for name, data in {"a.safetensors": b"not safetensors", "a.ckpt": b"\x80\x04\x95pickle"}.items():
        answer = server.client.post("/api/v1/models", files={"file": (name, data)})
        assert answer.status_code in {415, 422}, answer.text
        assert "/" not in answer.json()["error"]["message"].replace("I/O", "")
    assert server.client.get("/api/v1/models?installed=true").json()["total"] == installed
