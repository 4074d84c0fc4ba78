"""Measure what a service still finishes when it is asked for ten times what it can do.

    python -m benchmarks.overload [--config FILE | --url URL] [--out OUT]

A service is started, or a running one is asked, and one generator does everything else. It first searches the highest
goodput: rounds with more and more requests per second, each sent at its time whatever the answers do. Goodput counts
items that were answered with scores within the time that a client waits. Then come rounds with ten times the requests
of that peak. In one, clients say how long they wait; in the other, they only hang up. All texts are distinct. A refused
client does not come back. Peak and overload take turns, so that a machine with other work on it changes both alike;
ratios only.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.served import describe_features, read_samples, serve
from benchmarks.workloads import make_text
from benchmarks.written import describe_machine

ITEMS = 4  # of a request
WAIT_S = 5.0  # until a client hangs up
PATIENT_S, AFTER_REFUSAL_S = 60.0, 0.5  # of the clients that show the rate around which the peak is searched
CLIENTS = 3  # as many as keep the service busy, and wait little
OVERLOAD = 10
PROMPT_WORDS, COMPLETION_WORDS = 18, 10  # about as many tokens as the median of HH, since invented words have four
STEPS = (0.6, 0.8, 1.0, 1.2, 1.5)  # of the rate of patient clients, to find the highest goodput
PROBE_EVERY_S = 0.25
COLUMNS = ("load", "offered items/s", "goodput items/s", "share of peak", "P50 s", "P99 s", "429", "504", "hung up")


@dataclass
class Round:
    """What one round of load gave.

    Attributes:
        offered_per_s: items that were offered in a second.
        seconds: length of the round.
        latencies_s: seconds of each request that was answered with scores in time.
        statuses: number of requests by status; 0 counts clients that hung up.
        probes_s: seconds of each answer of a probe, by path.
        memory: time and resident bytes of the service, at each probe.
    """

    offered_per_s: float
    seconds: float
    latencies_s: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    probes_s: dict[str, list[float]] = field(default_factory=lambda: {"/ready": [], "/metrics": []})
    memory: list[tuple[float, float]] = field(default_factory=list)

    @property
    def goodput(self) -> float:
        """Return the items per second that were answered in time."""
        return len(self.latencies_s) * ITEMS / self.seconds

    def describe(self, load: str, peak: float) -> dict[str, Any]:
        """Return the row of the table."""
        numbers = (self.offered_per_s, self.goodput, self.goodput / peak, *self.compute_latencies_s())
        counts = (self.statuses[429], self.statuses[504], self.statuses[0])
        return dict(zip(COLUMNS, (load, *(round(number, 2) for number in numbers), *counts), strict=True))

    def compute_latencies_s(self) -> tuple[float, float]:
        """Return the median and the 99th percentile of the answered requests, in seconds."""
        return compute_percentile(self.latencies_s, 0.5), compute_percentile(self.latencies_s, 0.99)

    def compute_memory_slope(self) -> float:
        """Return the MiB per minute by which the service grew, by least squares."""
        times, sizes = zip(*self.memory, strict=True)
        return statistics.linear_regression(times, sizes).slope * 60 / 2**20


def compute_percentile(values: list[float], share: float) -> float:
    """Return the value that a share of `values` does not exceed; NaN without values."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else float("nan")


class Generator:
    """Clients of one service.

    Args:
        url: address of the service.
        seed: seed of the texts and of the moments at which requests are sent.
    """

    def __init__(self, url: str, seed: int) -> None:
        self._url = url
        self._draw = random.Random(seed)
        self._http: httpx.AsyncClient

    async def __aenter__(self) -> "Generator":
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=200)
        self._http = httpx.AsyncClient(base_url=self._url, limits=limits, timeout=None)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def run_closed(self, clients: int, seconds: float) -> Round:
        """Let patient clients ask one request after the other; a refused one comes back after a moment."""
        found = Round(float("nan"), seconds)
        end_s = time.monotonic() + seconds

        async def ask() -> None:
            while time.monotonic() < end_s:
                answered = len(found.latencies_s)
                await self._send(found, declares=False, wait_s=PATIENT_S)
                if len(found.latencies_s) == answered:
                    await asyncio.sleep(AFTER_REFUSAL_S)

        await asyncio.gather(*(ask() for _ in range(clients)))
        return found

    async def run_open(self, requests_per_s: float, seconds: float, *, declares: bool) -> Round:
        """Send requests at exponentially distributed distances, whatever becomes of them.

        Args:
            requests_per_s: mean number of requests in a second.
            seconds: length of the round; answers to its last requests are awaited and count.
            declares: True if clients say how long they wait.
        """
        found = Round(requests_per_s * ITEMS, seconds)
        tasks: set[asyncio.Task[None]] = set()
        async with self._probe(found):
            at_s = time.monotonic()
            end_s = at_s + seconds
            while (at_s := at_s + self._draw.expovariate(requests_per_s)) < end_s:
                await asyncio.sleep(max(0.0, at_s - time.monotonic()))
                tasks.add(asyncio.create_task(self._send(found, declares=declares)))
            await asyncio.gather(*tasks)
        return found

    async def _send(self, found: Round, *, declares: bool, wait_s: float = WAIT_S) -> None:
        items = [
            {
                "prompt": make_text(self._draw, PROMPT_WORDS),
                "completion": make_text(self._draw, COMPLETION_WORDS),
            }
            for _ in range(ITEMS)
        ]
        headers = {"X-Request-Timeout-Ms": str(int(WAIT_S * 1000))} if declares else {}
        began_s = time.monotonic()
        status = 0
        with contextlib.suppress(TimeoutError, httpx.TransportError):
            async with asyncio.timeout(wait_s):
                answer = await self._http.post("/v1/score", json={"items": items}, headers=headers)
                status = answer.status_code
        found.statuses[status] += 1
        if status == httpx.codes.OK:
            assert all("score" in row for row in answer.json()["data"])
            found.latencies_s.append(time.monotonic() - began_s)

    @asynccontextmanager
    async def _probe(self, found: Round) -> AsyncIterator[None]:
        """Ask both probes again and again within the block, on connections of their own."""

        async def ask(path: str) -> None:
            async with httpx.AsyncClient(base_url=self._url, timeout=WAIT_S) as http:
                while True:
                    began_s = time.monotonic()
                    answer = await http.get(path)
                    assert answer.status_code == httpx.codes.OK, answer.text
                    found.probes_s[path].append(time.monotonic() - began_s)
                    if path == "/metrics":
                        found.memory.append((began_s, read_samples(answer.text)["process_resident_memory_bytes"]))
                    await asyncio.sleep(PROBE_EVERY_S)

        asking = [asyncio.create_task(ask(path)) for path in found.probes_s]
        try:
            yield
        finally:
            for task in asking:
                task.cancel()
            for result in await asyncio.gather(*asking, return_exceptions=True):
                if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
                    raise result


async def measure(url: str, seconds: float, rounds: int) -> list[tuple[str, Round]]:
    """Return the rounds with their names: the search for the peak, and overload of both kinds, in turn."""
    found: list[tuple[str, Round]] = []
    async with Generator(url, seed=0) as generator:
        await generator.run_closed(CLIENTS, seconds / 2)  # the rate of the queue is learned, and memory is taken
        for number in range(rounds):
            base = (await generator.run_closed(CLIENTS, seconds)).goodput / ITEMS
            searched = [await generator.run_open(base * step, seconds, declares=False) for step in STEPS]
            best = max(searched, key=lambda one: one.goodput)
            assert best.goodput > 0, f"no client got an answer within {WAIT_S:g} s: the machine is too slow or too busy"
            found.append((f"peak {number + 1}", best))
            for declares, name in ((True, "says 5 s"), (False, "hangs up")):
                rate = OVERLOAD * best.goodput / ITEMS
                found.append((f"10x {number + 1}, {name}", await generator.run_open(rate, seconds, declares=declares)))
    return found


def format_page(found: list[tuple[str, Round]], command: str) -> tuple[str, list[dict[str, Any]]]:
    """Return the page of results, and its rows."""
    rows, peak = [], float("nan")
    for name, one in found:
        peak = one.goodput if name.startswith("peak") else peak
        rows.append(one.describe(name, peak))
    over = [one for name, one in found if not name.startswith("peak")]
    slowest = {path: [s for one in over for s in one.probes_s[path]] for path in ("/ready", "/metrics")}
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    lines += [f"| {' | '.join(str(row[name]) for name in COLUMNS)} |" for row in rows]
    probes = [
        f"- `{path}` under overload: median {compute_percentile(all_s, 0.5) * 1000:.0f} ms, P99 "
        f"{compute_percentile(all_s, 0.99) * 1000:.0f} ms, slowest {max(all_s) * 1000:.0f} ms ({len(all_s)} probes)."
        for path, all_s in slowest.items()
    ]
    shares = [one["share of peak"] for one in rows if not one["load"].startswith("peak")]
    growth = ", ".join(f"{one.compute_memory_slope():.1f}" for one in over)
    text = (
        f"# Overload\n\n`{command}`; {describe_machine()}; CPU features: {describe_features()}; load average at the "
        f"end {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs. Requests of {ITEMS} items, clients that wait "
        f"{WAIT_S:g} s.\n\n"
    )
    summary = [
        f"- Goodput under overload: {min(shares):.2f} to {max(shares):.2f} of the peak of the same round.",
        *probes,
        f"- Growth of the resident memory in each round of overload, in MiB per minute: {growth}.",
    ]
    return text + "\n".join([*lines, "", *summary]) + "\n", rows


def main() -> None:
    """Measure, print, and write a Markdown and a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="YAML configuration; default: the two embedded models")
    parser.add_argument("--url", help="address of a running service, which nobody else asks meanwhile")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "overload")
    given = parser.parse_args()
    with contextlib.nullcontext(given.url) if given.url else serve(given.config) as url:
        found = asyncio.run(measure(url, given.seconds, given.rounds))
    page, rows = format_page(found, "python -m benchmarks.overload " + " ".join(sys.argv[1:]))
    given.out.with_suffix(".md").write_text(page)
    given.out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    print(page)


if __name__ == "__main__":
    main()
