"""Remember which endpoints of a service failed, and choose where a request goes; it has no clock of its own."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from assay_client.affinity import rank_endpoints
from assay_client.errors import AssayError, InvalidAnswer, ServerError, TransportError

# Statuses that say something about the whole endpoint; 500 is about one request.
REST_STATUSES = frozenset({429, 502, 503, 504})
REDIRECTS = frozenset({301, 302, 303, 307, 308})
REST_FIRST_S = 1.0
REST_MAX_S = 30.0
RETRY_AFTER_MAX_S = 60.0  # a server that asks for an hour is asked again after a minute


@dataclass(frozen=True)
class Health:
    """What is known of one endpoint.

    Attributes:
        failures: the number of failures since its last success.
        rest_until_s: the monotonic time in seconds until which other endpoints are preferred.
        asked: True if the endpoint itself asked for that time (`Retry-After`).
    """

    failures: int = 0
    rest_until_s: float = -math.inf
    asked: bool = False


def is_foreign(failure: AssayError | None) -> bool:
    """Return whether another program than the service seems to answer at an endpoint, such as a proxy with its page."""
    return isinstance(failure, InvalidAnswer) or (isinstance(failure, ServerError) and failure.status in REDIRECTS)


class Endpoints:
    """The addresses of one service, and the failures that all calls of a client have met there.

    Threads may use it without a lock: each change replaces one value, and a lost change costs one more try.

    Args:
        urls: the addresses, at least one.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self.urls = tuple(urls)
        self._health = dict.fromkeys(self.urls, Health())

    def find(self, key: str, now_s: float, tried: Collection[str] = ()) -> str:
        """Return the endpoint for a key: its first one that does not rest, or the one whose rest ends first.

        Args:
            key: the affinity key, or any other text.
            now_s: the monotonic time in seconds.
            tried: the endpoints where this request has failed, once for each try; those with fewer are preferred.
        """
        if len(self.urls) == 1:
            return self.urls[0]
        counts = list(tried)
        # `min` takes the first of equals, which is the one that the key prefers.
        return min(
            rank_endpoints(key, self.urls),
            key=lambda url: (
                self._health[url].rest_until_s if self.is_resting(url, now_s) else -math.inf,
                counts.count(url),
            ),
        )

    def take(self, key: str, now_s: float, tried: Collection[str] = ()) -> str:
        """Return the endpoint for a key, as `find` does, for a request that is sent now.

        An endpoint whose rest has ended gets one request. Others keep away until it has succeeded or as long again. So
        an endpoint that accepts connections and never answers holds up one request at a time.
        """
        url = self.find(key, now_s, tried)
        known = self._health[url]
        if known.failures:
            self._rest(url, known.failures, None, now_s)
        return url

    def is_resting(self, url: str, now_s: float) -> bool:
        """Return whether other endpoints are preferred to this one."""
        return now_s < self._health[url].rest_until_s

    def compute_wait_s(self, url: str, now_s: float) -> float | None:
        """Return the seconds for which the endpoint has asked not to be tried; None if it has not."""
        known = self._health[url]
        return known.rest_until_s - now_s if known.asked and self.is_resting(url, now_s) else None

    def report(self, url: str, failure: AssayError | None, now_s: float) -> None:
        """Remember the outcome of a try: the error, or None for an answer."""
        is_down = isinstance(failure, TransportError) or (
            isinstance(failure, ServerError) and failure.status in REST_STATUSES
        )
        if is_down or is_foreign(failure):
            asked_s = failure.retry_after_s if isinstance(failure, ServerError) else None
            self._rest(url, self._health[url].failures + 1, asked_s, now_s)
        elif self._health[url].failures and not (isinstance(failure, ServerError) and failure.status >= 500):
            self._health[url] = Health()  # refusals are answers, too

    def _rest(self, url: str, failures: int, asked_s: float | None, now_s: float) -> None:
        # The exponent is bounded before the power is taken: 2.0**2000 overflows.
        own_s = min(REST_MAX_S, REST_FIRST_S * 2.0 ** min(failures - 1, 32))
        rest_s = own_s if asked_s is None else min(asked_s, RETRY_AFTER_MAX_S)
        self._health[url] = Health(failures, now_s + rest_s, asked_s is not None)
