"""Start, lose and remove replicas in simulated time, and count the time for which they are paid."""

import random
from collections import deque
from collections.abc import Generator
from typing import Any, TypeAlias

import simpy

from benchmarks.capacity.replica import Counters, Replica, ReplicaSettings
from benchmarks.capacity.routing import Router, Routing
from benchmarks.capacity.scaling import ScalingRule, compute_wanted, limit_change

Process: TypeAlias = Generator[simpy.Event, Any, None]

DETECT_S = 10.0  # until a gateway stops asking a replica that is gone
WINDOW_S = 60.0  # over which the chart's query takes the mean wait


class Fleet:
    """The replicas behind one gateway.

    Args:
        env: SimPy's environment.
        settings: settings of each replica.
        routing: rule by which the gateway chooses.
        zones: number of zones, over which replicas are spread evenly.
        draw: source of random choices.

    Attributes:
        router: the replicas that get requests.
        sizes: time and number of paid replicas after each change.
    """

    def __init__(
        self, env: simpy.Environment, settings: ReplicaSettings, routing: Routing, zones: int, draw: random.Random
    ) -> None:
        self.router = Router(routing, draw)
        self.sizes: list[tuple[float, int]] = []
        self._env = env
        self._settings = settings
        self._zones = zones
        self._all: list[Replica] = []
        self._zone: dict[Replica, int] = {}
        self._ready: list[Replica] = []
        self._starting = 0
        self._lost_zones: set[int] = set()

    @property
    def size(self) -> int:
        """Return the number of replicas that are paid: those that work or start."""
        return len(self._ready) + self._starting

    def add(self, slowness: float = 1.0) -> Replica | None:
        """Add a replica that works at once, in the zone with the fewest; None if no zone is left."""
        counts = dict.fromkeys((zone for zone in range(self._zones) if zone not in self._lost_zones), 0)
        if not counts:
            return None
        for replica in self._ready:
            counts[self._zone[replica]] += 1
        replica = Replica(self._env, f"replica-{len(self._all)}", self._settings, slowness)
        self._zone[replica] = min(counts, key=counts.__getitem__)
        self._all.append(replica)
        self._ready.append(replica)
        self.router.add(replica)
        self._note()
        return replica

    def start(self, number: int, start_s: float) -> None:
        """Start replicas that get requests after a time, and are paid at once."""
        for _ in range(number):
            self._starting += 1
            self._env.process(self._start(start_s))
        self._note()

    def remove(self, number: int) -> None:
        """Remove the newest replicas; they finish what they have."""
        for _ in range(number):
            self.router.remove(self._ready.pop())
        self._note()

    def lose_zone(self, zone: int) -> Process:
        """Lose all replicas of a zone at once; the gateway finds out after `DETECT_S`."""
        self._lost_zones.add(zone)
        gone = [replica for replica in self._ready if self._zone[replica] == zone]
        self._ready = [replica for replica in self._ready if replica not in gone]
        for replica in gone:
            replica.fail()
        self._note()
        yield self._env.timeout(DETECT_S)
        for replica in gone:
            self.router.remove(replica)

    def scale(self, rule: ScalingRule) -> Process:
        """Follow a rule for ever."""
        wanted: deque[int] = deque(maxlen=max(1, round(rule.stable_s / rule.every_s)))
        seen = deque([(0.0, 0)], maxlen=max(1, round(WINDOW_S / rule.every_s)) + 1)
        while True:
            yield self._env.timeout(rule.every_s)
            counters = self.list_counters()
            seen.append((sum(one.wait_s for one in counters), sum(one.waited for one in counters)))
            waited = seen[-1][1] - seen[0][1]
            wait_s = (seen[-1][0] - seen[0][0]) / waited if waited else 0.0
            waiting = sum(replica.queue_tokens for replica in self._ready)
            wanted.append(compute_wanted(rule, self.size, waiting, wait_s))
            change = limit_change(rule, self.size, wanted) - self.size
            if change > 0:
                self.start(change, rule.start_s)
            elif change < 0:
                # Replicas that start cannot be removed here, and at least one stays.
                self.remove(min(-change, len(self._ready) - 1))

    def list_counters(self) -> list[Counters]:
        """Return what each replica has done, also those that are gone."""
        return [replica.counters for replica in self._all]

    def _start(self, start_s: float) -> Process:
        yield self._env.timeout(start_s)
        self._starting -= 1
        self.add()

    def _note(self) -> None:
        self.sizes.append((self._env.now, self.size))
