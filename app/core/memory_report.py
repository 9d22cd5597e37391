"""The memory of the workers as they tell it when they are asked, and what a cleanup freed."""

import os
from typing import Any

import psutil

from app.core.fleet import Fleet
from app.core.jobs import new_id
from app.core.worker_handle import WorkerHandle

ANSWER_SECONDS = 30.0
"""How long a worker may take: one whose interpreter is held by a library answers after that."""
FIGURES = ("total_bytes", "free_bytes", "reserved_bytes", "allocated_bytes", "placed_bytes", "parked_bytes")


def tell_memory(fleet: Fleet, *, cleanup: bool = False, seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
    """Ask every worker that is up; `is_live` is false where the figures are those of its last job.

    With `cleanup` each drops the models that no job uses, and gives the memory back before it answers.
    """
    question = new_id()
    with fleet.changed:
        asked = [worker for worker in fleet.workers.values() if worker.is_up]
        for worker in asked:
            worker.questions.add(question)
    for worker in asked:
        worker.send({"type": "memory", "question": question, "cleanup": cleanup})
    with fleet.changed:
        fleet.changed.wait_for(lambda: all(question in worker.answers or not worker.is_up for worker in asked), seconds)
        for worker in asked:
            # An answer that comes after this is nobody's, and must not be kept.
            worker.questions.discard(question)
        told = [
            _told(worker, question, cleanup, fleet.memory_settings(worker.name)) for worker in fleet.workers.values()
        ]
    return {"process": {"pid": os.getpid(), "rss_bytes": psutil.Process().memory_info().rss}, "devices": told}


def _told(worker: WorkerHandle, question: str, cleanup: bool, settings: dict[str, Any]) -> dict[str, Any]:
    message = worker.answers.pop(question, None)
    described = worker.describe()
    memory = worker.memory
    answer: dict[str, Any] = {
        "device": worker.name,
        "runs_on": worker.runs_on,
        "state": described["state"],
        "pid": worker.pid,
        "is_live": message is not None,
        "settings": settings,
        "precision": memory.get("precision"),
        **{name: memory.get(name) for name in FIGURES},
        "models": memory.get("models", []),
        "forwards": memory.get("forwards"),
    }
    if cleanup:
        before = message["before"]["memory"] if message else memory
        kept = {model["model"] for model in answer["models"]}
        answer["freed_bytes"] = max(0, before.get("reserved_bytes", 0) - memory.get("reserved_bytes", 0))
        answer["dropped_models"] = sorted({model["model"] for model in before.get("models", [])} - kept)
    return answer
