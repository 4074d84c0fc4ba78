"""Measure one service of two threads against two replicas of one thread, with and without affinity.

    python -m benchmarks.replicas [--seconds S] [--rounds N] [--out benchmarks/results/replicas]

The model is a random Llama of two layers with the widths of `benchmarks.models`, so that a run takes a few minutes. The
client is Assay's own. With affinity it knows both addresses; at random, each request goes to a client of one of them.
All texts are new in each run, except that every fourth group of a burst was in the burst before.

The times of one replica are measured as well, alone and while the other one is as busy. `benchmarks.capacity.validate`
simulates the runs from these times.
"""

import argparse
import asyncio
import itertools
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.bursts import BEST_OF_16, KINDS, PPO, Kind, count_tokens
from benchmarks.capacity.speed import Speed, fit_speed
from benchmarks.contenders.ours import write_configuration
from benchmarks.models import make_words, train_tokenizer, write_llama
from benchmarks.replica_run import COLUMNS, Run, measure_run
from benchmarks.served import describe_features, serve
from benchmarks.workloads import Group

LAYERS = 2
CACHE_BYTES = 64 * 2**20
RUN_STRIDE = 10_000  # numbers of bursts between two runs, so that no text occurs in both
# Of a replica whose speed is measured: small passes of few requests, then both kinds of traffic.
FEW_ITEMS = Kind("few items", "PPO, 64 prompts", 3, single=True, barrier=False)
CALIBRATION = (FEW_ITEMS, PPO, BEST_OF_16)


class Benchmark:
    """All runs, each with texts of its own.

    Args:
        config: configuration of the service.
        seconds: length of a run.
        rounds: number of runs of each kind; kinds of routing take turns.
    """

    def __init__(self, config: Path, seconds: float, rounds: int) -> None:
        self._config = config
        self._seconds = seconds
        self._rounds = rounds
        self._firsts: Iterator[int] = itertools.count(0, RUN_STRIDE)
        self._tokenizer = train_tokenizer(make_words())

    def run(self) -> dict[str, Any]:
        """Return the times of one replica, alone and beside a busy one, and all runs."""
        with ExitStack() as stack:
            urls = [stack.enter_context(serve(self._config, threads=1)) for _ in range(2)]
            asyncio.run(self._warm_up(urls))
            alone = [asyncio.run(self._measure("1 x 1", kind, urls[:1], "one")) for kind in CALIBRATION]
            beside = [asyncio.run(self._measure_beside(kind, urls)) for kind in CALIBRATION]
            runs = [
                asyncio.run(self._measure("2 x 1", kind, urls, routing))
                for _ in range(self._rounds)
                for kind in KINDS
                for routing in ("affinity", "random")
            ]
        with serve(self._config, threads=2) as url:
            asyncio.run(self._warm_up([url]))
            runs += [
                asyncio.run(self._measure("1 x 2", kind, [url], "one")) for _ in range(self._rounds) for kind in KINDS
            ]
        return {"alone": alone, "beside": beside, "runs": runs}

    async def _warm_up(self, urls: Sequence[str]) -> None:
        for url in urls:
            await self._measure("", PPO, [url], "one", seconds=1.0)

    async def _measure(
        self, layout: str, kind: Kind, urls: Sequence[str], routing: str, seconds: float | None = None
    ) -> Run:
        first, within_s = next(self._firsts), self._seconds if seconds is None else seconds
        return await measure_run(layout, kind, urls, routing, first, within_s, self._count)

    async def _measure_beside(self, kind: Kind, urls: Sequence[str]) -> Run:
        """Measure the first replica while the second one gets the same traffic with other texts."""
        one, _ = await asyncio.gather(*(self._measure("1 x 1, beside", kind, [url], "one") for url in urls))
        return one

    def _count(self, group: Group) -> int:
        prompt, completions = count_tokens(self._tokenizer, group)
        return prompt * len(completions) + sum(completions)


def describe_speed(speed: Speed) -> str:
    """Return the times of a replica in words."""
    per_s = 1 / speed.token_s
    return (
        f"{speed.pass_s * 1000:.1f} ms a pass, {speed.token_s * 1e6:.0f} µs a token ({per_s:.0f} tokens/s), "
        f"{speed.request_s * 1000:.2f} ms a request, {speed.item_s * 1000:.2f} ms an item"
    )


def format_page(found: dict[str, Any], command: str) -> str:
    """Return the page of results."""
    rows = [run.describe() for run in (*found["alone"], *found["beside"], *found["runs"])]
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    lines += [f"| {' | '.join(str(row[name]) for name in COLUMNS)} |" for row in rows]
    speeds = {name: fit_speed([run.describe_work() for run in found[name]]) for name in ("alone", "beside")}
    fitted = [f"- One replica of one thread, {name}: {describe_speed(speed)}." for name, speed in speeds.items()]
    text = (
        f"# Replicas\n\n`{command}`; torch {torch.__version__}; CPU features: {describe_features()}; load average at "
        f"the end {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs. A random Llama of {LAYERS} layers (hidden size "
        "768). *Tokens saved*: the share of the tokens of new items that a shared prompt saved.\n\n"
    )
    return text + "\n".join([*lines, "", *fitted]) + "\n"


def main() -> None:
    """Measure, print, and write a Markdown and a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="length of a run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "replicas")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = write_llama(Path(folder), make_words(), layers=LAYERS)
        found = Benchmark(write_configuration(model, CACHE_BYTES), given.seconds, given.rounds).run()
    page = format_page(found, f"python -m benchmarks.replicas --seconds {given.seconds:g} --rounds {given.rounds}")
    given.out.with_suffix(".md").write_text(page)
    rows = {name: [asdict(run) for run in runs] for name, runs in found.items()}
    given.out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    print(page)


if __name__ == "__main__":
    main()
