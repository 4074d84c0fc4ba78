"""Read from a request who asks, and for how long they wait for the answer."""

from fastapi import Request

from assay_service.engine.admission import ANONYMOUS, Terms
from assay_service.errors import ServingError

# The time that is left to the client, in milliseconds. Envoy, and what is built on it, sets the second one by itself,
# to 0 where a route has no time limit.
TIMEOUT = "X-Request-Timeout-Ms"
ENVOY_TIMEOUT = "X-Envoy-Expected-Rq-Timeout-Ms"


def read_terms(request: Request) -> Terms:
    """Return the terms of a request; of two time limits the shorter one counts.

    The caller is the name of the API key; without keys, all requests have one caller. An address is not a name: the
    clients behind a gateway share one.

    Raises:
        ServingError: a header is not a number of milliseconds.
    """
    limits_ms = [_read_ms(request, name) for name in (TIMEOUT, ENVOY_TIMEOUT)]
    arrived_s: float = request.state.timings.arrived_s
    given_ms = [limit for limit in limits_ms if limit is not None]
    caller = getattr(request.state, "caller", ANONYMOUS)
    return Terms(caller, arrived_s + min(given_ms) / 1000) if given_ms else Terms(caller)


def _read_ms(request: Request, name: str) -> int | None:
    """Return the milliseconds of a header; None where it is missing, or says that there is no limit."""
    text = request.headers.get(name)
    if text is None or (name == ENVOY_TIMEOUT and text == "0"):
        return None
    # Bounded in length, because a number of thousands of digits takes long to read.
    if not (text.isascii() and text.isdecimal() and len(text) <= 12 and int(text) > 0):
        raise ServingError(
            f"the header {name} must be a whole number of milliseconds above 0", code="invalid_request", param=name
        )
    return int(text)
