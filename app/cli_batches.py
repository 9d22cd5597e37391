"""`eis batch submit | status | cancel | retry | priority | list | pause | resume`: batches of a running server."""

import argparse
import datetime
import json
from typing import Any
from urllib.parse import urlencode

from app.cli_jobs import Server, line, server_options
from app.cli_lines import read_lines
from app.errors import InvalidRequest

COMMANDS = ("submit", "status", "cancel", "retry", "priority", "list", "pause", "resume")
ROOT = "/api/v1/batch"


def declare(parser: argparse.ArgumentParser) -> None:
    """The commands and where the server is."""
    where = server_options()
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    submit = commands.add_parser("submit", parents=[where], help="queue every line of a JSONL file, all or none")
    submit.add_argument("file", metavar="FILE", help="the JSONL file; - reads stdin")
    submit.add_argument("--capability", help="capability of the lines that name none")
    submit.add_argument("--priority", type=int, default=5, help="0 to 10; 10 goes first (default: 5)")
    submit.set_defaults(act=send)
    for name, summary in (
        ("status", "a job, or a batch with its jobs"),
        ("cancel", "end what has not ended of a job or batch"),
        ("retry", "queue what has failed of a job or batch again"),
        ("priority", "give what waits of a job or batch another priority"),
    ):
        child = commands.add_parser(name, parents=[where], help=summary)
        child.add_argument("id", help="the id of a job or a batch")
        if name == "priority":
            child.add_argument("priority", type=int, help="0 to 10; 10 goes first")
        child.set_defaults(act=one, name=name)
    listing = commands.add_parser("list", parents=[where], help="batches, newest first, and the queue")
    listing.add_argument("--limit", type=int, default=20)
    listing.add_argument("--offset", type=int, default=0)
    listing.set_defaults(act=list_batches)
    for name, summary in (("pause", "start nothing new"), ("resume", "start waiting jobs again")):
        commands.add_parser(name, parents=[where], help=summary).set_defaults(act=switch, name=name)


def send(options: argparse.Namespace) -> int:
    """Queue a file; the batch's id is printed once the server has every job on its disk."""
    jobs = []
    for number, wish in read_lines(options.file):
        name = wish.pop("capability", options.capability)
        if not isinstance(name, str):
            raise InvalidRequest(f"Line {number} names no capability; --capability sets one for all.")
        wish.pop("out", None)
        jobs.append({"handler": name, "request": wish, "priority": options.priority})
    tell(options, Server(options.url, options.key).ask("POST", f"{ROOT}/submit-batch", {"jobs": jobs}), jobs=False)
    return 0


def one(options: argparse.Namespace) -> int:
    """Ask for a job or a batch, or act on it."""
    if not options.id.isalnum():
        raise InvalidRequest("An id has only letters and digits.")
    body = {"priority": options.priority} if options.name == "priority" else {}
    method = "GET" if options.name == "status" else "POST"
    server = Server(options.url, options.key)
    tell(options, server.ask(method, f"{ROOT}/{options.name}/{options.id}", body), jobs=options.name == "status")
    return 0


def list_batches(options: argparse.Namespace) -> int:
    """A table of batches and the state of the queue."""
    query = urlencode({"limit": options.limit, "offset": options.offset})
    page = Server(options.url, options.key).ask("GET", f"{ROOT}?{query}")
    if options.json:
        print(json.dumps(page, indent=2))
        return 0
    for batch in page["batches"]:
        print(batch_line(batch))
    print(f"{len(page['batches'])} of {page['total']} batches; {queue_line(page['queue'])}")
    return 0


def switch(options: argparse.Namespace) -> int:
    """Pause or resume the whole queue."""
    state = Server(options.url, options.key).ask("POST", f"{ROOT}/{options.name}")
    print(json.dumps(state, indent=2) if options.json else queue_line(state))
    return 0


def tell(options: argparse.Namespace, found: dict[str, Any], *, jobs: bool) -> None:
    """A job in one line, or a batch and, if they are wanted, its jobs."""
    if options.json:
        print(json.dumps(found, indent=2))
    elif "jobs" not in found:
        print(line(found))
    else:
        print(batch_line(found))
        for job in found["jobs"] if jobs else ():
            print(f"  {line(job)}")


def batch_line(batch: dict[str, Any]) -> str:
    """A batch in one line."""
    created = datetime.datetime.fromtimestamp(batch["created"]).strftime("%Y-%m-%d %H:%M:%S")
    counts = ", ".join(f"{count} {status}" for status, count in batch["counts"].items() if count)
    return f"{batch['id']}  {created}  {batch['status']:10} {batch['progress']:4.0%}  {batch['total']} jobs: {counts}"


def queue_line(queue: dict[str, Any]) -> str:
    """The queue in a few words."""
    state = "the queue is paused" if queue["paused"] else "the queue moves"
    return f"{state}, {queue['running']} running, {queue['queued']} waiting"
