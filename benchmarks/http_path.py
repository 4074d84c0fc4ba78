"""Measure what a request costs besides the models: two versions of the service answer items whose logits are cached.

    python -m benchmarks.http_path --against DIR [--seconds S] [--rounds N] [--out OUT]

`DIR` is a checkout of another version (`git worktree add DIR REVISION`). Three processes serve the embedded models:
this version, this version without its cache of rendered items, and the other one. Every item is scored once before the
clock starts, so that afterwards no model runs. Concurrent clients then send requests of several sizes; the services
take turns, so that other work on the machine slows all alike. The CPU time of a service is its own
`process_cpu_seconds_total`, which other processes hardly change. Only ratios of one run count.
"""

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import yaml

from benchmarks.served import describe_features, read_samples, serve
from benchmarks.workloads import make_text
from benchmarks.written import describe_machine

HERE = Path(__file__).resolve().parents[1]
SIZES = (1, 4, 16, 64)  # items of a request
CLIENTS = 64
ITEMS = 256  # different ones
COMPLETIONS = 4  # of each prompt
PROMPT_WORDS, COMPLETION_WORDS = 18, 10  # about as many tokens as the median of HH, since invented words have four
EMBEDDED = Path("service", "assay_service", "embedded")
# Nothing is refused: while nothing runs, the time of the work that waits is estimated from the slow first scores.
LIMITS = {"max_queue_wait_s": 600}
COLUMNS = ("items of a request", "items/s", "before", "ratio", "CPU ms", "before", "ratio", "ratio, rendered anew")
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Served:
    """A running service, with the requests that it gets by their number of items."""

    url: str
    requests: dict[int, list[bytes]]


@dataclass(frozen=True, slots=True)
class Rate:
    """What one round gave: items per second, and CPU milliseconds of the service for each request."""

    items_per_s: float
    cpu_ms: float


def write_config(folder: Path, checkout: Path, limits: dict[str, int]) -> Path:
    """Write the configuration that serves the embedded models of a checkout."""
    settings = yaml.safe_load((checkout / EMBEDDED / "service.yaml").read_text())
    for signal in settings["signals"].values():
        signal["adapter"] = str(checkout / EMBEDDED / signal["adapter"])
    path = folder / "service.yaml"
    path.write_text(yaml.safe_dump(settings | {"limits": LIMITS | limits}))
    return path


def make_items(seed: int) -> list[dict[str, str]]:
    """Make the items; those of one prompt are neighbors."""
    draw = random.Random(seed)
    prompts = [make_text(draw, PROMPT_WORDS) for _ in range(ITEMS // COMPLETIONS)]
    return [
        {"prompt": prompt, "completion": make_text(draw, COMPLETION_WORDS)}
        for prompt in prompts
        for _ in range(COMPLETIONS)
    ]


def prepare(url: str, items: Sequence[dict[str, str]]) -> Served:
    """Score all items once, and write the requests of every size as they are sent."""
    parts = {size: [items[at : at + size] for at in range(0, len(items), size)] for size in SIZES}
    for part in parts[max(SIZES)]:
        rows = httpx.post(f"{url}/v1/score", json={"items": part}, timeout=None).raise_for_status().json()["data"]
        assert all("score" in row for row in rows), "an item has no score"
    host = url.removeprefix("http://")
    return Served(url, {size: [_write_request(host, part) for part in parts[size]] for size in SIZES})


def _write_request(host: str, items: Sequence[dict[str, str]]) -> bytes:
    body = json.dumps({"items": items}).encode()
    head = f"POST /v1/score HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


async def run_round(served: Served, size: int, seconds: float) -> Rate:
    """Let clients send requests one after the other, each on a connection of its own, for a time."""
    begun, end_s = _read_cpu_s(served.url), time.monotonic() + seconds

    async def ask(client: int) -> int:
        """Send requests until the time is over, and return their number."""
        host, _, port = served.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=2**22)
        requests, count = served.requests[size], 0
        while time.monotonic() < end_s:
            writer.write(requests[(client * 7 + count) % len(requests)])
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            length = _LENGTH.search(head)
            assert length is not None, head
            await reader.readexactly(int(length[1]))
            count += 1
        writer.close()
        return count

    started_s = time.monotonic()
    count = sum(await asyncio.gather(*map(ask, range(CLIENTS))))
    took_s = time.monotonic() - started_s
    return Rate(count * size / took_s, 1000 * (_read_cpu_s(served.url) - begun) / count)


def _read_cpu_s(url: str) -> float:
    return read_samples(httpx.get(f"{url}/metrics").text)["process_cpu_seconds_total"]


def measure(services: Sequence[Served], seconds: float, rounds: int) -> dict[int, list[list[Rate]]]:
    """Return the rates of each service in all rounds, by the number of items of a request."""
    found: dict[int, list[list[Rate]]] = {size: [[] for _ in services] for size in SIZES}
    for number in range(rounds + 1):
        for size in SIZES:
            for index, served in enumerate(services):
                rate = asyncio.run(run_round(served, size, seconds))
                if number > 0:  # the first round warms both up
                    found[size][index].append(rate)
    return found


def describe(size: int, rates: Sequence[Sequence[Rate]]) -> list[float]:
    """Return the row of one size: medians of this version and the one before, and their ratios."""
    speeds = [statistics.median(rate.items_per_s for rate in of_one) for of_one in rates]
    costs = [statistics.median(rate.cpu_ms for rate in of_one) for of_one in rates]
    speed = (round(speeds[0]), round(speeds[-1]), round(speeds[0] / speeds[-1], 2))
    cost = (round(costs[0], 2), round(costs[-1], 2), *(round(costs[-1] / one, 2) for one in costs[:-1]))
    return [size, *speed, *cost]


def format_page(rows: Sequence[Sequence[float]], seconds: float, rounds: int) -> str:
    """Return the page of results."""
    text = (
        f"# HTTP path\n\n`python -m benchmarks.http_path`; {describe_machine()}; CPU features: {describe_features()}; "
        f"load average at the end {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs.\n\n{CLIENTS} clients, {rounds} "
        f"rounds of {seconds:g} s in turn, medians. All logits are cached. CPU is that of the service for one request. "
        "Ratios above 1 are in favor of this version. The last one is of CPU, without the cache of rendered items.\n\n"
    )
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    lines += [f"| {' | '.join(map(str, row))} |" for row in rows]
    return text + "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, and write a Markdown and a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, required=True, help="checkout of the version to compare with")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "http_path")
    given = parser.parse_args()
    items = make_items(seed=0)
    versions: list[tuple[Path, dict[str, int]]] = [
        (HERE, {}),
        (HERE, {"rendering_cache_bytes": 0}),
        (given.against, {}),
    ]
    with ExitStack() as stack:
        services = []
        for checkout, limits in versions:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            config = write_config(folder, checkout.resolve(), limits)
            url = stack.enter_context(serve(config, threads=1, checkout=checkout.resolve()))
            services.append(prepare(url, items))
        found = measure(services, given.seconds, given.rounds)
    rows = [describe(size, found[size]) for size in SIZES]
    page = format_page(rows, given.seconds, given.rounds)
    given.out.with_suffix(".md").write_text(page)
    raw = {size: [[asdict(rate) for rate in of_one] for of_one in rates] for size, rates in found.items()}
    given.out.with_suffix(".json").write_text(json.dumps({"columns": COLUMNS, "rows": rows, "rounds": raw}) + "\n")
    print(page)


if __name__ == "__main__":
    main()
