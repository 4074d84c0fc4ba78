"""Choose the id under which a request is logged and answered."""

import re
import uuid

HEADER = "x-request-id"
# An id goes into headers and log lines, so it must not hold a line break or be long.
_VALID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def choose_request_id(sent: str | None) -> str:
    """Return the id that the client sent if it is short and plain, else a new one.

    Clients match every answer to its request by this id, so it is repeated in every answer.
    """
    return sent if sent is not None and _VALID.fullmatch(sent) else uuid.uuid4().hex
