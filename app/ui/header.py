"""The line at the top: name, version, the model in use, how the service is, and the switch between light and dark."""

from collections.abc import Sequence
from html import escape
from typing import Any

from app.errors import WeightsMissing


def header(service: Any, version: str, *, logged_in: bool) -> str:
    """The header's HTML for this moment."""
    readiness = service.readiness()
    workers = readiness.get("workers", [])
    queued, running = readiness.get("queued", 0), readiness.get("running", 0)
    if readiness.get("ready"):
        tone, state = "eis-good", "Ready"
        if running:
            tone, state = "eis-go", "Working" if not queued else f"Working, {queued} waiting"
        elif queued:
            state = f"{queued} waiting"
    else:
        tone, state = "eis-wait", "Starting"
    if readiness.get("paused"):
        tone, state = "eis-wait", f"Paused, {queued} waiting" if queued else "Paused"
    devices = ", ".join(sorted({str(worker.get("device")) for worker in workers})) or "no device"
    resident = sorted({model for worker in workers for model in worker.get("resident_models") or ()})
    model = shortened(resident) or automatic(service)
    models = f"The models in use: {', '.join(resident)}" if len(resident) > 1 else "The model in use"
    leave = '<a class="eis-button eis-quiet" href="login">Change key</a>' if logged_in else ""
    return (
        f'<header class="eis-header"><span class="eis-mark" aria-hidden="true"></span><h1>Edit Image Service</h1>'
        f'<span class="eis-version">{escape(version)}</span><span class="eis-grow"></span>'
        f'<span class="eis-fact" title="{escape(models)}">{escape(model)}</span>'
        f'<span class="eis-fact eis-device" title="Where it runs">{escape(devices)}</span>'
        f'<span class="eis-health {tone}" role="status"><i></i>{escape(state)}</span>'
        f'<a class="eis-button eis-quiet eis-docs" href="docs" target="_blank" rel="noopener">API</a>{leave}'
        '<button type="button" class="eis-button eis-quiet" data-client="theme"><span class="eis-to-dark">Dark</span>'
        '<span class="eis-to-light">Light</span></button></header>'
    )


def shortened(models: Sequence[str]) -> str:
    """The first two names, and how many more there are."""
    more = f" and {len(models) - 2} more" if len(models) > 2 else ""
    return ", ".join(models[:2]) + more


def automatic(service: Any) -> str:
    """The model that `auto` means for the first capability that needs one."""
    needs = next((capability.needs for capability in service.catalog if capability.needs), ())
    if not needs:
        return ""
    try:
        return service.models.choose(needs).spec.title
    except WeightsMissing:
        return "no model installed"
