"""Run one scenario: a fleet, its clients and what goes wrong; the same seed gives the same numbers."""

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

import simpy

from assay_client._endpoints import Endpoints
from benchmarks.capacity.clients import Clients, Process, Tally
from benchmarks.capacity.fleet import Fleet
from benchmarks.capacity.network import Gateway
from benchmarks.capacity.replica import Counters, ReplicaSettings
from benchmarks.capacity.routing import Routing
from benchmarks.capacity.scaling import ScalingRule
from benchmarks.capacity.speed import Speed
from benchmarks.capacity.traffic import Ask, Shape, draw_groups

GATEWAY = "http://gateway"
SAMPLED = 2000  # groups whose mean gives the work of a group
PPO = Shape(completions=16, requests=2)
AFFINITY = Routing()
BEST_OF_N = Shape(completions=16, repeated=0.2)


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is simulated.

    Attributes:
        speed: measured times of a replica.
        replicas: number of replicas at the beginning.
        load: work that is offered in a second, as a share of the capacity of these replicas.
        seconds: time in which clients begin to ask; what they have begun is always ended.
        seed: seed of everything random.
        routing: rule by which the gateway chooses.
        zones: number of zones.
        ppo_share: share of the work that comes in bursts of PPO trainers; the rest is best of N, at random moments.
        trainers: number of trainers.
        every_s: time from the beginning of a burst to the next of the same trainer.
        width: most requests that one trainer has in flight.
        ppo: form of the groups of a burst.
        best_of_n: form of the groups of best of N.
        slow: number of slow replicas.
        slowness: factor of their times.
        zone_lost_at_s: time at which zone 0 is lost; None for never.
        step_at_s: time at which the load of best of N changes; None for never.
        step: factor by which it changes.
        scaling: rule by which the number of replicas changes; None for never.
    """

    speed: Speed
    replicas: int
    load: float
    seconds: float
    seed: int = 0
    routing: Routing = AFFINITY
    zones: int = 4
    ppo_share: float = 0.5
    trainers: int = 4
    every_s: float = 30.0
    width: int = 256
    ppo: Shape = PPO
    best_of_n: Shape = BEST_OF_N
    slow: int = 0
    slowness: float = 4.0
    zone_lost_at_s: float | None = None
    step_at_s: float | None = None
    step: float = 1.0
    scaling: ScalingRule | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What a scenario gave.

    Attributes:
        tally: ends of all requests.
        counters: counts of the work of each replica.
        sizes: time and number of paid replicas after each change.
    """

    tally: Tally
    counters: list[Counters]
    sizes: list[tuple[float, int]]


def compute_group_s(speed: Speed, shape: Shape, max_batch_tokens: int) -> float:
    """Return the mean seconds of a replica for a group, with full passes, a shared prompt and an empty cache."""
    groups = list(itertools.islice(draw_groups(random.Random(0), shape), SAMPLED))
    tokens = sum(group[0].prompt_tokens + sum(part.tokens for ask in group for part in ask.parts) for group in groups)
    around_s = sum(speed.compute_around_s(ask.items) for group in groups for ask in group)
    return (tokens * (speed.token_s + speed.pass_s / max_batch_tokens) + around_s) / SAMPLED


def run(scenario: Scenario) -> Result:
    """Run a scenario until all requests have ended."""
    env = simpy.Environment()
    settings = ReplicaSettings(scenario.speed)
    draws = random.Random(scenario.seed)
    fleet = Fleet(env, settings, scenario.routing, scenario.zones, random.Random(draws.random()))
    for number in range(scenario.replicas):
        fleet.add(scenario.slowness if number < scenario.slow else 1.0)
    clients = Clients(env, Gateway(env, fleet.router), random.Random(draws.random()))
    asking = list(_start_clients(env, scenario, clients, draws, settings.max_batch_tokens))
    if scenario.zone_lost_at_s is not None:
        env.process(_wait(env, scenario.zone_lost_at_s, lambda: env.process(fleet.lose_zone(0))))
    if scenario.scaling is not None:
        env.process(fleet.scale(scenario.scaling))
    env.run(env.all_of(asking))
    while len(clients.tally.outcomes) < clients.tally.offered:
        env.step()
    return Result(clients.tally, fleet.list_counters(), fleet.sizes)


def _start_clients(
    env: simpy.Environment, scenario: Scenario, clients: Clients, draws: random.Random, max_batch_tokens: int
) -> Iterator[simpy.Process]:
    """Start the trainers and the clients of best of N, and yield their processes."""
    endpoints = Endpoints([GATEWAY])
    work_s = scenario.load * scenario.replicas
    ppo_groups_per_s = work_s * scenario.ppo_share / compute_group_s(scenario.speed, scenario.ppo, max_batch_tokens)
    best_work_s = work_s * (1 - scenario.ppo_share)
    best_per_s = best_work_s / compute_group_s(scenario.speed, scenario.best_of_n, max_batch_tokens)
    in_burst = round(ppo_groups_per_s * scenario.every_s / scenario.trainers)
    for trainer in range(scenario.trainers if in_burst else 0):
        draw = random.Random(draws.random())
        bursts = _draw_bursts(env, scenario, draw, in_burst)
        offset_s = scenario.every_s * trainer / scenario.trainers
        running = clients.run_trainer(bursts, scenario.every_s, endpoints, scenario.width)
        yield env.process(_delay(env, offset_s, running))
    if best_per_s:
        draw = random.Random(draws.random())
        asks = chain.from_iterable(draw_groups(draw, scenario.best_of_n))
        yield env.process(clients.run_open(_draw_gaps(scenario, draw, best_per_s), asks, endpoints))


def _draw_bursts(env: simpy.Environment, scenario: Scenario, draw: random.Random, in_burst: int) -> Iterator[list[Ask]]:
    """Yield bursts until the time is over; the requests of a prompt follow each other, as a trainer sends them."""
    groups = draw_groups(draw, scenario.ppo)
    while env.now < scenario.seconds:
        yield list(chain.from_iterable(itertools.islice(groups, in_burst)))


def _draw_gaps(scenario: Scenario, draw: random.Random, per_s: float) -> Iterator[float]:
    """Yield exponentially distributed gaps until the time is over."""
    at_s = 0.0
    while True:
        stepped = scenario.step_at_s is not None and at_s >= scenario.step_at_s
        gap_s = draw.expovariate(per_s * (scenario.step if stepped else 1.0))
        at_s += gap_s
        if at_s >= scenario.seconds:
            return
        yield gap_s


def _delay(env: simpy.Environment, seconds: float, process: Process) -> Process:
    yield env.timeout(seconds)
    yield from process


def _wait(env: simpy.Environment, seconds: float, begin: Callable[[], object]) -> Process:
    yield env.timeout(seconds)
    begin()
