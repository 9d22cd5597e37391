"""The progress line of a job on stderr: a bar on a terminal, a few plain lines in a log."""

import sys
import time
from typing import TextIO

from app.core.jobs import JobEvent

WIDTH = 28
QUARTERS = 4


class ProgressLine:
    """Draws what a job's events say; `close` leaves a clean line."""

    def __init__(self, title: str, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self.title = title
        self.quiet = quiet
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty()
        self.drawn = False
        self.begun = time.monotonic()
        self.quarter = 0
        self.told = 0

    def show(self, event: JobEvent) -> None:
        """React to one event."""
        if self.quiet:
            return
        if event.kind == "step" and event.data.get("steps"):
            self.step(event.data["step"], event.data["steps"], event.data.get("seconds_left"))
        elif event.kind == "stages":
            self.close()
            for stage in event.data["stages"][self.told :]:
                print(f"{self.title}: {stage['stage']}: {stage['text']}", file=self.stream, flush=True)
            self.told = len(event.data["stages"])
        elif event.kind == "started" and self.terminal:
            self.draw(f"{self.title}: loading")

    def step(self, step: int, steps: int, seconds_left: float | None) -> None:
        """Step i of n."""
        if self.quiet:
            return
        share = min(1.0, step / steps)
        if self.terminal:
            filled = round(share * WIDTH)
            left = f", {seconds_left:.0f} s left" if seconds_left is not None and step < steps else ""
            self.draw(f"{self.title} [{'#' * filled}{'.' * (WIDTH - filled)}] {step}/{steps}{left}")
        elif int(share * QUARTERS) > self.quarter:
            self.quarter = int(share * QUARTERS)
            print(f"{self.title}: step {step} of {steps}", file=self.stream, flush=True)

    def bytes(self, done: int, total: int) -> None:
        """Bytes of a download."""
        if self.quiet:
            return
        share = done / total if total else 0.0
        rate = done / max(0.001, time.monotonic() - self.begun)
        text = f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB, {rate / 1e6:,.1f} MB/s"
        if self.terminal:
            filled = min(WIDTH, round(share * WIDTH))
            self.draw(f"{self.title} [{'#' * filled}{'.' * (WIDTH - filled)}] {text}")
        elif int(share * QUARTERS) > self.quarter:
            self.quarter = int(share * QUARTERS)
            print(f"{self.title}: {text}", file=self.stream, flush=True)

    def draw(self, text: str) -> None:
        """Replace the line."""
        self.stream.write(f"\r\x1b[2K{text}")
        self.stream.flush()
        self.drawn = True

    def close(self) -> None:
        """Take the bar away."""
        if self.drawn:
            self.stream.write("\r\x1b[2K")
            self.stream.flush()
            self.drawn = False
