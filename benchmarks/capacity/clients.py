"""Simulate clients: Assay's own retries and deadlines decide, in simulated time."""

import math
import random
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import simpy

from assay_client._endpoints import Endpoints
from assay_client._retry import Done, Event, Policy, Send, exchange
from assay_client.errors import AssayError, ServerError
from benchmarks.capacity.network import Network
from benchmarks.capacity.traffic import Ask

Process: TypeAlias = Generator[simpy.Event, Any, None]

DEFAULTS = Policy(timeout_s=30.0, deadline_s=300.0, max_retries=5)  # of `RewardClient`
TOO_MANY = 429


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of one request.

    Attributes:
        begun_s: time at which its client began to ask.
        ended_s: time of its answer, or at which its client gave up.
        items: number of its items.
        tries: number of tries.
        end: "done"; "refused", if the last try met a full queue; or "lost", after any other failure.
    """

    begun_s: float
    ended_s: float
    items: int
    tries: int
    end: str

    @property
    def seconds(self) -> float:
        """Return the seconds from the first try to the end."""
        return self.ended_s - self.begun_s


@dataclass
class Tally:
    """What became of all requests.

    Attributes:
        offered: number of requests that clients began.
        outcomes: their ends.
        bursts: beginning and end of each burst of a trainer.
    """

    offered: int = 0
    outcomes: list[Outcome] = field(default_factory=list)
    bursts: list[tuple[float, float]] = field(default_factory=list)

    def count(self, end: str) -> int:
        """Return the number of requests with an end."""
        return sum(outcome.end == end for outcome in self.outcomes)

    def select_done(self, begun_s: float = -math.inf, ended_s: float = math.inf) -> list[Outcome]:
        """Return the requests that were answered with scores, of those that ended within a time."""
        return [one for one in self.outcomes if one.end == "done" and begun_s <= one.ended_s < ended_s]


class Clients:
    """All clients of a service.

    Args:
        env: SimPy's environment.
        network: the way to the replicas.
        draw: source of random numbers for waits.
        policy: limits of one request.

    Attributes:
        tally: the ends of their requests.
    """

    def __init__(
        self, env: simpy.Environment, network: Network, draw: random.Random, policy: Policy = DEFAULTS
    ) -> None:
        self.tally = Tally()
        self._env = env
        self._network = network
        self._draw = draw
        self._policy = policy

    def ask(self, ask: Ask, endpoints: Endpoints) -> Process:
        """Send one request with all its tries, and write down its end.

        Args:
            ask: the request.
            endpoints: the addresses that its client knows, and what it has met there.
        """
        env, tally, begun_s, tries = self._env, self.tally, self._env.now, 0
        tally.offered += 1
        deadline_s = begun_s + self._policy.deadline_s
        steps = exchange(
            bytes, self._policy, endpoints, key=ask.key, request_id="", deadline_at_s=deadline_s, now_s=begun_s
        )
        try:
            step = next(steps)
            while not isinstance(step, Done):
                outcome = None
                if isinstance(step, Send):
                    tries += 1
                    outcome = yield from self._network.send(step.endpoint, ask, step.timeout_s)
                else:
                    yield env.timeout(step.delay_s)
                step = steps.send(Event(env.now, self._draw.random(), outcome))
            end = "done"
        except AssayError as error:
            end = "refused" if isinstance(error, ServerError) and error.status == TOO_MANY else "lost"
        tally.outcomes.append(Outcome(begun_s, env.now, ask.items, tries, end))

    def ask_together(self, asks: Iterable[Ask], choose: Callable[[], Endpoints], width: int) -> Process:
        """Send requests in their order, at most `width` at once, and return when all have ended.

        Args:
            asks: the requests; may be endless, and is then read as needed.
            choose: function that returns the addresses for the next request.
            width: most requests in flight at once.
        """
        rest = iter(asks)
        yield self._env.all_of([self._env.process(self._work(rest, choose)) for _ in range(width)])

    def _work(self, rest: Iterator[Ask], choose: Callable[[], Endpoints]) -> Process:
        for ask in rest:
            yield from self.ask(ask, choose())

    def run_open(self, gaps_s: Iterable[float], asks: Iterator[Ask], endpoints: Endpoints) -> Process:
        """Send a request after each gap, whatever becomes of the earlier ones.

        Args:
            gaps_s: seconds between one request and the next.
            asks: the requests.
            endpoints: the addresses of the service.
        """
        for gap_s in gaps_s:
            yield self._env.timeout(gap_s)
            self._env.process(self.ask(next(asks), endpoints))

    def run_trainer(self, bursts: Iterable[Sequence[Ask]], every_s: float, endpoints: Endpoints, width: int) -> Process:
        """Send bursts: the next one when a period has passed and the last one has ended.

        Args:
            bursts: the requests of each burst.
            every_s: seconds from the beginning of a burst to the next, at least.
            endpoints: the addresses of the service.
            width: most requests in flight at once.
        """
        for burst in bursts:
            begun_s, period = self._env.now, self._env.timeout(every_s)
            yield self._env.process(self.ask_together(burst, lambda: endpoints, width))
            self.tally.bursts.append((begun_s, self._env.now))
            yield period
