"""Simulate a fleet of replicas, and write a page of results with figures.

    python -m benchmarks.capacity [--replicas N] [--price P] [--measured FILE] [--out OUT]

The times of a replica are those that `benchmarks.replicas` measured beside a busy neighbor. All seeds are fixed, so the
same measurement gives the same page.
"""

import argparse
import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.capacity.figures import draw_lag, draw_routing, draw_zone
from benchmarks.capacity.report import find_recovery_s, summarize
from benchmarks.capacity.routing import Routing
from benchmarks.capacity.scaling import ScalingRule
from benchmarks.capacity.scenario import BEST_OF_N, Result, Scenario, run
from benchmarks.capacity.speed import Speed, fit_speed
from benchmarks.capacity.validate import RESULTS, read_runs

AFFINITY, BOUNDED, RANDOM = Routing("affinity"), Routing("affinity", 1.25), Routing("random")
ROUTINGS = {"random": RANDOM, "affinity": AFFINITY, "affinity, bound 1.25": BOUNDED}
LOADS = (0.6, 0.8, 0.95)
HOT = 0.02
STARTS_S = (30.0, 120.0, 300.0)
STEP_AT_S, STEP = 60.0, 2.5
ZONE_LOADS = (0.5, 0.7)
LOST_AT_S = 40.0
GOOD_S = 3.0  # a P99 up to which a fleet counts as recovered
TIME_STEP_S = 5.0


@dataclass(frozen=True, slots=True)
class Part:
    """One table: its title, its scenarios by the name of the row, and its columns."""

    title: str
    scenarios: dict[str, Scenario]
    columns: tuple[str, ...]


def make_parts(speed: Speed, replicas: int) -> list[Part]:
    """Return what is simulated."""
    base = Scenario(speed, replicas, 0.8, 60.0, routing=BOUNDED)
    usual = ("items/s", "P50 s", "P99 s", "burst s", "hits", "saved", "tries", "refused", "lost")
    loads = {
        f"{load:g}, {name}": replace(base, load=load, routing=routing)
        for load in LOADS
        for name, routing in ROUTINGS.items()
    }
    hot = {
        f"{HOT:.0%} of best of N have one prompt, {name}": replace(
            base, routing=routing, best_of_n=replace(BEST_OF_N, hot=HOT)
        )
        for name, routing in ROUTINGS.items()
    }
    few = replicas // 5
    rule = ScalingRule(few, replicas, queue_tokens=2 / speed.token_s)
    growing = replace(base, replicas=few, load=0.6, seconds=420.0, ppo_share=0.0, step_at_s=STEP_AT_S, step=STEP)
    lags = {f"start in {start_s:g} s": replace(growing, scaling=replace(rule, start_s=start_s)) for start_s in STARTS_S}
    enough = replace(growing, replicas=math.ceil(few * STEP))
    lags["as many from the beginning"] = replace(enough, load=0.6 / STEP)
    zones = {f"load {load:g}": replace(base, load=load, seconds=100.0, zone_lost_at_s=LOST_AT_S) for load in ZONE_LOADS}
    slow = {
        f"{count} slow, {name}": replace(base, load=0.6, slow=count, routing=routing)
        for count in (0, 1)
        for name, routing in ROUTINGS.items()
    }
    return [
        Part("Load and routing", loads, (*usual, "cost")),
        Part("A popular prompt", hot, usual),
        Part("Autoscaling", lags, ("items/s", "P50 s", "P99 s", "tries", "refused", "lost", "replicas", "cost")),
        Part("Loss of a zone", zones, ("items/s", "P99 s", "burst s", "tries", "refused", "lost")),
        Part("A slow replica", slow, ("items/s", "P50 s", "P99 s", "burst s", "tries", "refused", "lost")),
    ]


def format_part(part: Part, results: Sequence[Result], price: float) -> list[str]:
    """Return the lines of a table."""
    lines = [f"## {part.title}", "", f"| | {' | '.join(part.columns)} |", "|---" * (len(part.columns) + 1) + "|"]
    for (name, scenario), result in zip(part.scenarios.items(), results, strict=True):
        numbers = summarize(scenario, result, price)
        lines.append(f"| {name} | {' | '.join(format_number(numbers[column]) for column in part.columns)} |")
    return [*lines, ""]


def format_number(number: float) -> str:
    """Return a number with three digits; whole numbers as they are."""
    return f"{number:,.0f}" if float(number).is_integer() or number >= 100 else f"{number:.3g}"


def describe_recovery(part: Part, results: Sequence[Result], event_s: float) -> list[str]:
    """Return a line for each scenario: the seconds after an event until the P99 was good again, and stayed so."""
    lines = []
    for (name, scenario), result in zip(part.scenarios.items(), results, strict=True):
        answered = result.tally.select_done()
        after_s = find_recovery_s(answered, event_s, GOOD_S, TIME_STEP_S, scenario.seconds)
        until = "never" if math.isinf(after_s) else f"{after_s:.0f} s"
        lines.append(f"- {name}: P99 at most {GOOD_S:g} s again after {until}.")
    return [*lines, ""]


def simulate(parts: Sequence[Part], processes: int) -> list[list[Result]]:
    """Return the results of every part, in its order."""
    flat = [scenario for part in parts for scenario in part.scenarios.values()]
    with ProcessPoolExecutor(processes) as pool:
        results = iter(list(pool.map(run, flat)))
    return [[next(results) for _ in part.scenarios] for part in parts]


def draw(folder: Path, parts: Sequence[Part], results: Sequence[Sequence[Result]], price: float) -> None:
    """Write the figures into a folder."""
    paired = [
        {name: (scenario, result) for (name, scenario), result in zip(part.scenarios.items(), found, strict=True)}
        for part, found in zip(parts, results, strict=True)
    ]
    keys = ((load, name) for load in LOADS for name in ROUTINGS)
    numbers = {key: summarize(*pair, price) for key, pair in zip(keys, paired[0].values(), strict=True)}
    draw_routing(folder / "scale-routing.svg", LOADS, list(ROUTINGS), numbers)
    draw_lag(folder / "scale-lag.svg", paired[2], STEP_AT_S)
    draw_zone(folder / "scale-zone.svg", paired[3], LOST_AT_S)


def main() -> None:
    """Simulate, print, and write the page and the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=200)
    parser.add_argument("--price", type=float, default=0.05, help="price of one replica for an hour, in any currency")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--measured", type=Path, default=RESULTS / "replicas.json")
    parser.add_argument("--out", type=Path, default=RESULTS / "capacity.md")
    parser.add_argument("--figures", type=Path, default=RESULTS.parents[1] / "docs" / "figures")
    given = parser.parse_args()
    speed = fit_speed([one.describe_work() for one in read_runs(given.measured)["beside"]])
    parts = make_parts(speed, given.replicas)
    results = simulate(parts, given.processes)
    lines = [
        "# A fleet, simulated",
        "",
        f"`python -m benchmarks.capacity --replicas {given.replicas} --price {given.price:g}`; {given.replicas} "
        f"replicas in 4 zones. Each takes {speed.pass_s * 1000:.1f} ms a pass, {speed.token_s * 1e6:.0f} µs a token, "
        f"{speed.request_s * 1000:.2f} ms a request and {speed.item_s * 1000:.2f} ms an item, as measured "
        f"([replicas](replicas.md)). *Cost*: price of a million scores at {given.price:g} for a replica's hour. "
        "*Burst*: mean time of a PPO burst.",
        "",
    ]
    for part, found in zip(parts, results, strict=True):
        lines += format_part(part, found, given.price)
    lines += describe_recovery(parts[2], results[2], STEP_AT_S) + describe_recovery(parts[3], results[3], LOST_AT_S)
    given.out.write_text("\n".join(lines).rstrip() + "\n")
    draw(given.figures, parts, results, given.price)
    print(given.out.read_text())


if __name__ == "__main__":
    main()
