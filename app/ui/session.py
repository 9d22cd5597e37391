"""What one open page remembers on the server: whose it is, and which jobs of which form it follows."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import gradio as gr

from app.errors import NotPermitted, UnknownImage
from app.ui.wording import without_backticks


@dataclass
class Session:
    """Jobs by capability that the stage has not shown to their end, oldest first; and who follows.

    Gradio hands every event of one page the same object. Its fields change between awaits only, on the one event
    loop, so a check and the change after it cannot be torn apart.
    """

    unshown: dict[str, list[str]] = field(default_factory=dict)
    followed: set[str] = field(default_factory=set)

    def expect(self, capability: str, job_id: str) -> None:
        """Know a job of a form that the stage shall show to its end."""
        waiting = self.unshown.setdefault(capability, [])
        if job_id not in waiting:
            waiting.append(job_id)

    def expect_next(self, capability: str, job_ids: Sequence[str]) -> None:
        """Know jobs that follow the one on the stage: they are shown right after it, before what waits behind it."""
        waiting = self.unshown.setdefault(capability, [])
        waiting[1:1] = [job_id for job_id in job_ids if job_id not in waiting]

    def next(self, capability: str) -> str | None:
        """The job that the stage shows now."""
        waiting = self.unshown.get(capability)
        return waiting[0] if waiting else None

    def shown(self, capability: str, job_id: str) -> None:
        """The stage has shown this job to its end."""
        waiting = self.unshown.get(capability, [])
        if job_id in waiting:
            waiting.remove(job_id)

    def cancelled(self, capability: str, job_id: str) -> None:
        """A job that was cancelled behind another one is not worth showing; the one on the stage is."""
        if self.next(capability) != job_id:
            self.shown(capability, job_id)


def owner_of(request: gr.Request) -> str:
    """The owner that the checks before every route found behind the request's key or cookie."""
    return getattr(request.request.state, "owner", "") or ""


def may_administer(request: gr.Request) -> bool:
    """Whether the key behind the request may change how the whole service runs."""
    return bool(getattr(request.request.state, "admin", False))


def require_admin(request: gr.Request) -> None:
    """`NotPermitted` unless it may: what the page does not show can still be asked of it."""
    if not may_administer(request):
        raise NotPermitted("Only a key that EIS_ADMIN_KEYS names may do this.")


def require_own(service: Any, reference: str, owner: str) -> None:
    """`UnknownImage` unless the picture is the owner's: ids that a browser sends are only claims."""
    if service.image_owner(reference) != owner:
        raise UnknownImage("There is no picture with this id.")


def warn(message: str, title: str = "Warning") -> None:
    """Tell the person; the message is text, although Gradio would take it as HTML."""
    gr.Warning(escape(without_backticks(message)), title=title)
