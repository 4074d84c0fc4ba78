"""Hold the times of one request, from which its headers, metrics, log line and spans are all made; no clock."""

import math
from dataclasses import dataclass
from typing import Literal

Phase = Literal["render", "queue", "compute"]


@dataclass(slots=True)
class Timings:
    """The times of one request, on the monotonic clock, in seconds.

    Whoever reads the clock passes the time on, so that no number is measured twice. The engine's thread calls
    `add_pass`, always before the request gets the logits of that pass.

    Attributes:
        arrived_s: arrival of the request.
        rendering_s, submitted_s: begin of rendering, and its end, at which the sequences go to the engine; NaN before.
        computing_s, computed_s: begin of the first forward pass, and end of the last one; NaN before.
        forward_s: duration of all forward passes that computed its sequences, each counted once.
        passes: number of these passes.
        sequences: number of sequences that the queue admitted.
        cached: number of those whose logits were cached.
    """

    arrived_s: float
    rendering_s: float = math.nan
    submitted_s: float = math.nan
    computing_s: float = math.nan
    computed_s: float = math.nan
    forward_s: float = 0.0
    passes: int = 0
    sequences: int = 0
    cached: int = 0

    def add_pass(self, started_s: float, ended_s: float) -> None:
        """Add a forward pass that computed at least one of the sequences.

        Args:
            started_s: begin of the pass, which may be before the request joined a sequence that was running.
            ended_s: its end; a pass that ends when the one before did is the same pass.
        """
        if ended_s == self.computed_s:
            return
        started_s = max(started_s, self.submitted_s)
        self.computing_s = started_s if self.passes == 0 else self.computing_s
        self.computed_s = ended_s
        self.forward_s += ended_s - started_s
        self.passes += 1

    def measure_phases(self) -> dict[Phase, float]:
        """Return the seconds of each phase that has ended, in the order of the phases.

        Rendering includes the wait for the render thread. Queue and compute together last from the submission to the
        end of the last pass: compute is the time of the request's own passes, queue is the rest.
        """
        phases: dict[Phase, float] = {"render": self.submitted_s - self.rendering_s}
        if self.passes:
            phases |= {"queue": self.computed_s - self.submitted_s - self.forward_s, "compute": self.forward_s}
        elif self.sequences and self.cached == self.sequences:
            phases |= {"queue": 0.0, "compute": 0.0}
        return {name: max(seconds, 0.0) for name, seconds in phases.items() if not math.isnan(seconds)}

    def list_intervals(self) -> list[tuple[Phase, float, float]]:
        """Return phase, begin and end of the phases that took time, on the monotonic clock.

        Between the passes of a long request other requests have their turn. Here the compute phase includes that time,
        and in `measure_phases` the queue does.
        """
        intervals: list[tuple[Phase, float, float]] = [
            ("render", self.rendering_s, self.submitted_s),
            ("queue", self.submitted_s, self.computing_s),
            ("compute", self.computing_s, self.computed_s),
        ]
        return [interval for interval in intervals if not math.isnan(interval[2])]

    def format_header(self, now_s: float) -> str:
        """Return the value of `Server-Timing`: milliseconds of each phase, and `total` from the arrival until now."""
        durations = [*self.measure_phases().items(), ("total", now_s - self.arrived_s)]
        return ", ".join(f"{name};dur={seconds * 1000:.3f}" for name, seconds in durations)
