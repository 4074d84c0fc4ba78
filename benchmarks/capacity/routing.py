"""Choose a replica for a prompt, as gateways do: by a consistent hash with a bound on the load, or at random.

The bound is that of [Bounded loads]. HAProxy has it as `hash-balance-factor`.
"""

import bisect
import math
import random
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal, TypeAlias

from benchmarks.capacity.replica import Replica

Policy: TypeAlias = Literal["affinity", "random"]
POINTS = 100  # of a replica on the ring; the more, the more even are the shares


@dataclass(frozen=True, slots=True)
class Routing:
    """How a gateway chooses.

    Attributes:
        policy: "affinity" chooses by the prompt, "random" does not.
        bound: most requests in flight at a replica, as a multiple of the mean; a replica beyond it is skipped.
    """

    policy: Policy = "affinity"
    bound: float = math.inf

    def __post_init__(self) -> None:
        if not self.bound > 1:
            raise ValueError(f"the bound of the load must be above 1, not {self.bound}")


class Router:
    """The replicas that a gateway knows, and how many of its requests each is working on.

    Args:
        routing: rule by which it chooses.
        draw: source of random choices.
    """

    def __init__(self, routing: Routing, draw: random.Random) -> None:
        self._routing = routing
        self._draw = draw
        self._replicas: dict[str, Replica] = {}
        self._ring: list[tuple[int, str]] = []
        self._in_flight: Counter[str] = Counter()
        self._total = 0

    def __len__(self) -> int:
        return len(self._replicas)

    def add(self, replica: Replica) -> None:
        """Send requests to a replica from now on."""
        self._replicas[replica.name] = replica
        for point in range(POINTS):
            bisect.insort(self._ring, (_hash(f"{replica.name} {point}"), replica.name))

    def remove(self, replica: Replica) -> None:
        """Send no more requests to a replica."""
        del self._replicas[replica.name]
        self._ring = [point for point in self._ring if point[1] != replica.name]

    def count(self, replica: Replica, change: int) -> None:
        """Count a request that was sent to a replica (1), or answered (-1)."""
        self._in_flight[replica.name] += change
        self._total += change

    def choose(self, key: str, tried: Collection[Replica] = ()) -> Replica | None:
        """Return the replica for a prompt, but none of those that were tried; None if there is no other.

        Args:
            key: affinity key of the prompt.
            tried: replicas that have failed this request.
        """
        if self._routing.policy == "random":
            return self._choose_randomly(tried)
        most = math.inf
        if math.isfinite(self._routing.bound) and self._replicas:
            most = math.ceil(self._routing.bound * (self._total + 1) / len(self._replicas))
        first = None
        for replica in self._walk(key):
            if replica not in tried:
                first = first or replica
                if self._in_flight[replica.name] < most:
                    return replica
        return first

    def _choose_randomly(self, tried: Collection[Replica]) -> Replica | None:
        others: Sequence[Replica] = list(self._replicas.values())
        if tried:
            others = [replica for replica in others if replica not in tried]
        return self._draw.choice(others) if others else None

    def _walk(self, key: str) -> Iterator[Replica]:
        """Yield each replica once, in the order of the ring from the key on."""
        start = bisect.bisect(self._ring, (_hash(key), ""))
        seen: set[str] = set()
        for offset in range(len(self._ring)):
            name = self._ring[(start + offset) % len(self._ring)][1]
            if name not in seen:
                seen.add(name)
                yield self._replicas[name]


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")
