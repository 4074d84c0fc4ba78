"""Define the settings of how the service starts, drains and ends, which decide no score."""

from pydantic import Field

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
