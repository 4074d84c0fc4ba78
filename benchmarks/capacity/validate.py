"""Compare the simulation with the runs of two real replicas that `benchmarks.replicas` measured.

    python -m benchmarks.capacity.validate [--measured FILE] [--out OUT]

The times of a replica come from the runs of one replica alone, so nothing of the compared runs enters the simulation
but their traffic: the same texts, at the same addresses. The exit code is 1 if a throughput differs by more than 15 %
where the times were measured beside a busy neighbor.
"""

import argparse
import json
import random
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path

import simpy
from transformers import PreTrainedTokenizerFast

from assay_client import affinity_key
from assay_client._endpoints import Endpoints
from benchmarks.bursts import KINDS, Kind, count_tokens, make_bursts, split_group
from benchmarks.capacity.clients import Clients, Process
from benchmarks.capacity.network import Direct
from benchmarks.capacity.replica import Replica, ReplicaSettings
from benchmarks.capacity.speed import Speed, fit_speed
from benchmarks.capacity.traffic import Ask, Part
from benchmarks.models import make_words, train_tokenizer
from benchmarks.replica_run import Run
from benchmarks.workloads import Group

MOST_DIFFERENCE = 0.15
RESULTS = Path(__file__).parents[1] / "results"
HEADS = (
    "times measured",
    "traffic",
    "routing",
    "measured items/s",
    "simulated items/s",
    "difference",
    "hits m/s",
    "passes m/s",
    "tokens m/s",
)


@dataclass(frozen=True, slots=True)
class Simulated:
    """What the simulation of a run gives."""

    seconds: float
    hits: int
    passes: int
    computed_tokens: int


def make_ask(tokenizer: PreTrainedTokenizerFast, group: Group) -> Ask:
    """Return a request of the traffic as the simulation has it: each completion is a part."""
    prompt_tokens, completion_tokens = count_tokens(tokenizer, group)
    parts = [
        Part(blake2b(f"{group.prompt}\n{text}".encode(), digest_size=16).digest(), tokens, 1)
        for text, tokens in zip(group.completions, completion_tokens, strict=True)
    ]
    return Ask(affinity_key(group.prompt), prompt_tokens, tuple(parts))


def list_bursts(tokenizer: PreTrainedTokenizerFast, kind: Kind, run: Run) -> list[list[Ask]]:
    """Return the requests of a run, by burst; without a barrier, all of them as one."""
    split = ([part for group in burst for part in split_group(kind, group)] for burst in make_bursts(kind, run.first))
    if kind.barrier:
        bursts = list(islice(split, run.bursts))
        assert sum(map(len, bursts)) == run.requests
    else:
        bursts = [list(islice(chain.from_iterable(split), run.requests))]
    return [[make_ask(tokenizer, group) for group in burst] for burst in bursts]


def simulate(run: Run, kind: Kind, bursts: Sequence[Sequence[Ask]], speed: Speed, seed: int) -> Simulated:
    """Simulate a run.

    Args:
        run: the measured run, of which only addresses and routing are used.
        kind: its traffic.
        bursts: its requests.
        speed: measured times of one replica.
        seed: seed of random routing, and of waits before retries.
    """
    env = simpy.Environment()
    replicas = {url: Replica(env, url, ReplicaSettings(speed)) for url in run.urls}
    draw = random.Random(seed)
    clients = Clients(env, Direct(env, replicas), draw)
    known = [Endpoints([url]) for url in run.urls] if run.routing == "random" else [Endpoints(run.urls)]

    def ask_all() -> Process:
        choose: Callable[[], Endpoints] = lambda: draw.choice(known)  # noqa: E731
        for burst in bursts:
            yield env.process(clients.ask_together(burst, choose, kind.width))

    env.run(env.process(ask_all()))
    assert clients.tally.count("done") == clients.tally.offered, "a simulated request failed; in the real run none did"
    counters = [replica.counters for replica in replicas.values()]
    return Simulated(
        env.now,
        sum(one.hits for one in counters),
        sum(one.passes for one in counters),
        sum(one.computed_tokens for one in counters),
    )


def compare(measured: dict[str, list[Run]]) -> Iterator[tuple[str, ...]]:
    """Yield the rows of the table, one for each kind of traffic, routing and measurement of the times."""
    tokenizer = train_tokenizer(make_words())
    kinds = {kind.name: kind for kind in KINDS}
    runs = [run for run in measured["runs"] if run.layout == "2 x 1"]
    bursts = cache(lambda run: list_bursts(tokenizer, kinds[run.kind], run))
    for name in ("beside", "alone"):
        speed = fit_speed([run.describe_work() for run in measured[name]])
        for kind, routing in dict.fromkeys((run.kind, run.routing) for run in runs):
            same = [run for run in runs if (run.kind, run.routing) == (kind, routing)]
            found = [simulate(run, kinds[kind], bursts(run), speed, seed) for seed, run in enumerate(same)]
            items = sum(run.items for run in same)
            real = items / sum(run.seconds for run in same)
            model = items / sum(one.seconds for one in found)
            hits = f"{sum(run.hits for run in same) / items:.2f} / {sum(one.hits for one in found) / items:.2f}"
            passes = f"{sum(run.passes for run in same):.0f} / {sum(one.passes for one in found)}"
            tokens = f"{sum(run.computed_tokens for run in same):.0f} / {sum(one.computed_tokens for one in found)}"
            yield name, kind, routing, f"{real:.1f}", f"{model:.1f}", f"{model / real - 1:+.1%}", hits, passes, tokens


def read_runs(path: Path) -> dict[str, list[Run]]:
    """Read what `benchmarks.replicas` has written."""
    found = json.loads(path.read_text())
    return {name: [Run(**{**row, "urls": tuple(row["urls"])}) for row in rows] for name, rows in found.items()}


def main() -> int:
    """Compare, print and write a page; return 1 if the simulation is not valid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", type=Path, default=RESULTS / "replicas.json")
    parser.add_argument("--out", type=Path, default=RESULTS / "capacity-validation.md")
    given = parser.parse_args()
    rows = list(compare(read_runs(given.measured)))
    differences = [float(row[5].rstrip("%")) / 100 for row in rows if row[0] == "beside"]
    worst = max(map(abs, differences))
    lines = [f"| {' | '.join(HEADS)} |", "|---" * len(HEADS) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
    verdict = "within" if worst <= MOST_DIFFERENCE else "not within"
    page = (
        "# Simulated and real replicas\n\n`python -m benchmarks.capacity.validate`, from "
        "[replicas.json](replicas.json): two replicas of one thread on two cores. *m/s*: measured / simulated.\n\n"
        + "\n".join(lines)
        + f"\n\nLargest difference with times measured beside a busy replica: {worst:.1%}, {verdict} "
        f"{MOST_DIFFERENCE:.0%}. Mean magnitude: {statistics.fmean(map(abs, differences)):.1%}.\n"
    )
    given.out.write_text(page)
    print(page)
    return int(worst > MOST_DIFFERENCE)


if __name__ == "__main__":
    sys.exit(main())
