"""Define the settings of how the service drains, and of traces and the sample log; none decides a score."""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from assay_service.signal_settings import Frozen


class LifecycleSettings(Frozen):
    """Times after which the service is not ready, or ends.

    Attributes:
        drain_s: seconds after SIGTERM in which requests in flight are finished; the rest are then refused.
        max_forward_s: seconds of one forward pass, or without any result while work waits, from which on the service
            is not ready.
    """

    drain_s: float = Field(30.0, ge=0, allow_inf_nan=False)
    max_forward_s: float = Field(60.0, gt=0, allow_inf_nan=False)


def _check_endpoint(address: str) -> str:
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an address such as http://collector:4318/v1/traces")
    return address


class TracingSettings(Frozen):
    """Where the spans of requests go, by OTLP over HTTP.

    Attributes:
        endpoint: address of the collector, with its path.
        ratio: share of the requests without a sampled parent that are traced; a parent decides for its own requests.
    """

    endpoint: Annotated[str, AfterValidator(_check_endpoint)]
    ratio: float = Field(0.05, ge=0, le=1)


class SamplesSettings(Frozen):
    """The sample log, which stores texts of requests.

    Attributes:
        path: file of the newest lines; older ones are in `path.1`, `path.2`, ….
        share: share of the scoring requests whose items are written, all of them together.
        max_bytes: size at which a file is rotated.
        files: number of files that are kept, the newest included.
        max_age_days: days after which a file is deleted, counted from its last line.
    """

    path: str = Field(min_length=1)
    share: float = Field(0.01, gt=0, le=1)
    max_bytes: int = Field(64 * 2**20, gt=0)
    files: int = Field(8, gt=0)
    max_age_days: float = Field(14, gt=0, allow_inf_nan=False)
