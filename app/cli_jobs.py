"""`eis jobs list | show | cancel | retry`: the jobs of a running server, over its REST face.

The server is the operator's own word (`--url`), so its host is the one that the guarded client trusts.
"""

import argparse
import datetime
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode, urlsplit

from app.errors import InvalidRequest, ServiceError, TransferFailed, error_class

LONGEST_ANSWER = 64 * 2**20


def server_options() -> argparse.ArgumentParser:
    """The parent of every command that asks a running server."""
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument("--url", help="address of the server (default: http://127.0.0.1 and EIS_PORT)")
    where.add_argument("--key", help="API key (default: the first of EIS_API_KEYS)")
    where.add_argument("--json", action="store_true", help="print what the server answers")
    return where


def declare(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    """Four commands and where the server is."""
    where = server_options()
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    listing = commands.add_parser("list", parents=[where], help="newest first")
    listing.add_argument("--status", choices=["queued", "running", "succeeded", "failed", "cancelled"])
    listing.add_argument("--capability")
    listing.add_argument("--limit", type=int, default=20)
    listing.add_argument("--offset", type=int, default=0)
    listing.set_defaults(act=list_jobs)
    for name, summary, method, suffix in (
        ("show", "one job, whole", "GET", ""),
        ("cancel", "end a waiting or running job", "POST", "/cancel"),
        ("retry", "queue a failed or cancelled job again", "POST", "/retry"),
    ):
        child = commands.add_parser(name, parents=[where], help=summary)
        child.add_argument("id", help="the job's id")
        child.set_defaults(act=one_job, method=method, suffix=suffix)


class Server:
    """The REST face of a running server."""

    def __init__(self, url: str | None, key: str | None) -> None:
        from app.cli_settings import read_settings
        from app.guarded_http import GuardedClient

        settings = read_settings()
        self.url = (url or f"http://127.0.0.1:{settings.port}").rstrip("/")
        parts = urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise InvalidRequest("--url must be an http or https address.")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        self.client = GuardedClient((f"{parts.hostname}:{port}",))
        key = key or (settings.api_keys[0].get_secret_value() if settings.api_keys else None)
        self.headers = {"authorization": f"Bearer {key}"} if key else {}

    def ask(self, method: str, path: str, value: Any = None) -> Any:
        """The JSON answer; an error of the server is raised as the error that it names."""
        try:
            if method == "GET":
                with self.client.stream(f"{self.url}{path}", headers=self.headers) as response:
                    status, body = response.status_code, response.read()
            else:
                headers = {**self.headers, "content-type": "application/json"}
                content = json.dumps(value or {}).encode()
                answer = self.client.post(f"{self.url}{path}", content=content, headers=headers, limit=LONGEST_ANSWER)
                status, body = answer.status, answer.content
        except TransferFailed:
            raise TransferFailed(f"No server answers at {self.url}.") from None
        try:
            value = json.loads(body)
        except ValueError:
            raise TransferFailed(f"What answers at {self.url} is not this service.") from None
        if status >= 400:
            error = value.get("error", {}) if isinstance(value, dict) else {}
            kind = error_class(error.get("code", ""))
            raise (kind if kind is not ServiceError else InvalidRequest)(error.get("message", f"Status {status}."))
        return value


def list_jobs(options: argparse.Namespace) -> int:
    """A table of jobs."""
    wanted = {"status": options.status, "capability": options.capability}
    query = {name: value for name, value in wanted.items() if value} | {
        "limit": options.limit,
        "offset": options.offset,
    }
    page = Server(options.url, options.key).ask("GET", f"/api/v1/jobs?{urlencode(query)}")
    if options.json:
        print(json.dumps(page, indent=2))
        return 0
    for job in page["jobs"]:
        print(line(job))
    print(f"{len(page['jobs'])} of {page['total']} jobs")
    return 0


def one_job(options: argparse.Namespace) -> int:
    """One job: show it, cancel it or queue it again."""
    if not options.id.isalnum():
        raise InvalidRequest("A job's id has only letters and digits.")
    job = Server(options.url, options.key).ask(options.method, f"/api/v1/jobs/{options.id}{options.suffix}")
    if options.json or options.method == "GET":
        print(json.dumps(job, indent=2))
    else:
        print(line(job))
    return 0


def line(job: dict[str, Any]) -> str:
    """A job in one line."""
    created = datetime.datetime.fromtimestamp(job["created"]).strftime("%Y-%m-%d %H:%M:%S")
    step = f" {job['step']}/{job['steps']}" if job["status"] == "running" else ""
    prompt = str(job["request"].get("prompt", ""))[:50]
    return f"{job['id']}  {created}  {job['status'] + step:18} {job['capability']:18} {job['model'] or '-':14} {prompt}"
