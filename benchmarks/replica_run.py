"""Send one kind of traffic to some replicas, and count what they do meanwhile."""

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from assay_client import AsyncRewardClient
from benchmarks.bursts import Kind, make_bursts, split_group
from benchmarks.capacity.speed import Work
from benchmarks.served import read_samples
from benchmarks.workloads import Group

SIGNAL = "s"  # of `write_configuration`
COLUMNS = (
    "replicas x threads",
    "traffic",
    "routing",
    "items/s",
    "computed tokens/s",
    "cache hits",
    "tokens saved",
    "429",
)


@dataclass(frozen=True, slots=True)
class Run:
    """What one run gave.

    Attributes:
        layout: replicas and threads, such as "2 x 1".
        kind: name of the traffic.
        routing: "affinity", "random" or "one".
        urls: addresses of the replicas, which decide where a prompt belongs.
        first: number of the first burst.
        bursts: number of bursts, the last of which may not be whole.
        requests: number of requests.
        items: number of scored items.
        seconds: time from the first request to the last answer.
        asked_tokens: number of tokens of all items, each with its prompt.
        computed_tokens: number of tokens that were computed.
        passes: number of forward passes.
        forward_s: seconds of forward passes, of all replicas.
        hits: number of items that were cached or in flight.
        misses: number of items that were new.
        refusals: number of answers with status 429.
    """

    layout: str
    kind: str
    routing: str
    urls: tuple[str, ...]
    first: int
    bursts: int
    requests: int
    items: int
    seconds: float
    asked_tokens: int
    computed_tokens: float
    passes: float
    forward_s: float
    hits: float
    misses: float
    refusals: float

    def describe(self) -> dict[str, Any]:
        """Return the row of the table."""
        # Of the tokens of items that were not cached; the lengths of cached ones are taken to be the mean.
        missed = self.asked_tokens * self.misses / (self.hits + self.misses)
        cells = (
            f"{self.items / self.seconds:.1f}",
            f"{self.computed_tokens / self.seconds:.0f}",
            f"{self.hits / (self.hits + self.misses):.2f}",
            f"{1 - self.computed_tokens / missed:.2f}",
            f"{self.refusals:.0f}",
        )
        return dict(zip(COLUMNS, (self.layout, self.kind, self.routing, *cells), strict=True))

    def describe_work(self) -> Work:
        """Return the work of a run with one replica."""
        assert len(self.urls) == 1
        return Work(self.seconds, self.forward_s, self.passes, self.computed_tokens, self.requests, self.items)


class Measured:
    """Counters of some services, as the difference of two readings.

    Args:
        urls: addresses of the services.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = urls
        self._before = self._read()

    def read(self) -> Callable[[str], float]:
        """Return a function that gives how much a sample has grown, summed over the services; 0 if there is none."""
        after = self._read()
        return lambda name: after.get(name, 0.0) - self._before.get(name, 0.0)

    def _read(self) -> dict[str, float]:
        sums: dict[str, float] = {}
        for url in self._urls:
            for name, value in read_samples(httpx.get(f"{url}/metrics").raise_for_status().text).items():
                sums[name] = sums.get(name, 0.0) + value
        return sums


async def send(client: AsyncRewardClient, kind: Kind, group: Group) -> None:
    """Send one request; all its items must be scored."""
    if kind.single:
        result = await client.score([(group.prompt, text, "stop") for text in group.completions])
        assert len(result.scores()) == len(group.completions)
    else:
        ranked = await client.rank(
            group.prompt, [{"completion": text, "finish_reason": "stop"} for text in group.completions]
        )
        assert len(ranked.results) == len(group.completions)


async def work_off(groups: Iterable[Group], width: int, send_one: Callable[[Group], Awaitable[None]]) -> None:
    """Send one request for each group in order, at most `width` at once, and wait for all."""
    rest = iter(groups)

    async def work() -> None:
        for group in rest:
            await send_one(group)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(width):
            tasks.create_task(work())


async def drive(kind: Kind, clients: Sequence[AsyncRewardClient], first: int, seconds: float) -> list[Group]:
    """Send traffic for some seconds, and return the groups of all requests; what was begun is finished.

    Args:
        kind: the traffic.
        clients: clients of which each request takes one at random.
        first: number of the first burst.
        seconds: time after which no burst, or no ranking, is begun.
    """
    draw, sent, end_s = random.Random(first), [], time.monotonic() + seconds

    async def send_one(group: Group) -> None:
        sent.append(group)
        await send(draw.choice(clients), kind, group)

    bursts = make_bursts(kind, first)
    split = ([part for group in burst for part in split_group(kind, group)] for burst in bursts)
    within = itertools.takewhile(lambda _: time.monotonic() < end_s, split)
    if kind.barrier:
        for burst in within:
            await work_off(burst, kind.width, send_one)
    else:
        each = (group for burst in split for group in burst)
        await work_off(itertools.takewhile(lambda _: time.monotonic() < end_s, each), kind.width, send_one)
    return sent


async def measure_run(
    layout: str,
    kind: Kind,
    urls: Sequence[str],
    routing: str,
    first: int,
    seconds: float,
    count: Callable[[Group], int],
) -> Run:
    """Measure one run.

    Args:
        layout: replicas and threads.
        kind: the traffic.
        urls: addresses of the replicas.
        routing: "affinity", "random" or "one".
        first: number of the first burst.
        seconds: length of the run.
        count: function that returns the number of tokens of a group's items, each with its prompt.
    """
    addresses = [list(urls)] if routing != "random" else [[url] for url in urls]
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(AsyncRewardClient(to, max_concurrency=kind.width)) for to in addresses
        ]
        measured = Measured(urls)
        began_s = time.monotonic()
        sent = await drive(kind, clients, first, seconds)
        took_s = time.monotonic() - began_s
    grown = measured.read()
    in_burst = sum(len(split_group(kind, group)) for group in next(make_bursts(kind, first)))
    return Run(
        layout=layout,
        kind=kind.name,
        routing=routing,
        urls=tuple(urls),
        first=first,
        bursts=-(-len(sent) // in_burst),
        requests=len(sent),
        items=sum(len(group.completions) for group in sent),
        seconds=took_s,
        asked_tokens=sum(map(count, sent)),
        computed_tokens=grown(f"assay_batch_tokens_sum {SIGNAL}"),
        passes=grown(f"assay_forward_seconds_count {SIGNAL}"),
        forward_s=grown(f"assay_forward_seconds_sum {SIGNAL}"),
        hits=grown("assay_lookups_total hit") + grown("assay_lookups_total in_flight"),
        misses=grown("assay_lookups_total miss"),
        refusals=sum(
            grown(f"assay_rejected_requests_total {reason}") for reason in ("wait", "tokens", "items", "deadline")
        ),
    )
