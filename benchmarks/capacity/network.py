"""Carry requests to replicas in simulated time: straight to an address, or through a gateway that chooses one."""

import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import simpy

from assay_client._raw_answer import OK, RawAnswer
from assay_client.errors import ConnectError, Timeout, TransportError
from assay_service.errors import DeadlineExceeded, Overloaded, ServingError
from benchmarks.capacity.replica import Replica
from benchmarks.capacity.routing import Router
from benchmarks.capacity.traffic import Ask

Answer = RawAnswer | TransportError
Steps = Generator[simpy.Event, Any, Answer]

CONNECT_S = 1.0  # until a connection to a host that is gone is given up
GATEWAY_TRIES = 2  # as in docs/gateway-nginx.md
PASSED_ON = frozenset({429, 503})  # statuses with which the gateway asks another replica


class Network(Protocol):
    """A way to the replicas."""

    def send(self, endpoint: str, ask: Ask, timeout_s: float) -> Steps:
        """Send a request, and return the answer or the error after its time."""
        ...


@dataclass(frozen=True)
class Direct:
    """Clients that know the address of every replica."""

    env: simpy.Environment
    replicas: Mapping[str, Replica]

    def send(self, endpoint: str, ask: Ask, timeout_s: float) -> Steps:
        """Send a request to the replica at an address."""
        return (yield from send(self.env, self.replicas[endpoint], ask, timeout_s))


@dataclass(frozen=True)
class Gateway:
    """A gateway with one address, which asks a second replica where one is full or gone."""

    env: simpy.Environment
    router: Router

    def send(self, endpoint: str, ask: Ask, timeout_s: float) -> Steps:
        """Send a request through the gateway, whatever its address is."""
        until_s = self.env.now + timeout_s
        answer: Answer = RawAnswer(503, {}, b"no replica is ready")
        tried: list[Replica] = []
        for _ in range(GATEWAY_TRIES):
            replica = self.router.choose(ask.key, tried)
            if replica is None or self.env.now >= until_s:
                break
            tried.append(replica)
            self.router.count(replica, 1)
            answer = yield from send(self.env, replica, ask, until_s - self.env.now)
            self.router.count(replica, -1)
            if isinstance(answer, Timeout) or (isinstance(answer, RawAnswer) and answer.status not in PASSED_ON):
                break
        # A gateway answers for a replica that is gone.
        return RawAnswer(502, {}, b"bad gateway") if isinstance(answer, ConnectError) else answer


def send(env: simpy.Environment, replica: Replica, ask: Ask, timeout_s: float) -> Steps:
    """Send a request to one replica, and return the answer or the error after its time."""
    if replica.lost:
        yield env.timeout(min(CONNECT_S, timeout_s))
        return ConnectError(f"{replica.name} cannot be reached")
    try:
        jobs = replica.submit(ask, env.now + timeout_s)
    except ServingError as error:
        yield env.timeout(0)
        return refuse(error)
    if not jobs:
        yield env.timeout(replica.compute_around_s(ask))
        return RawAnswer(OK, {}, b"")
    done = env.all_of([job.done for job in jobs])
    yield done | env.timeout(timeout_s)
    if not done.triggered:
        replica.abandon(jobs)
        return Timeout(f"no answer within {timeout_s:g} s")
    if not all(job.done.value for job in jobs):
        return ConnectError(f"{replica.name} was lost")
    return RawAnswer(OK, {}, b"")


def refuse(error: ServingError) -> RawAnswer:
    """Return the answer that the service gives for a refusal."""
    status = 504 if isinstance(error, DeadlineExceeded) else 429
    headers = {"retry-after": str(error.retry_after_s)} if isinstance(error, Overloaded) else {}
    body = {"error": {"code": error.code, "message": str(error), "retryable": error.retryable}}
    return RawAnswer(status, headers, json.dumps(body).encode())
