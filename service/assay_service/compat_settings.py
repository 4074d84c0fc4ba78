"""Define the settings of the compatible wires: the HTTP interfaces of other servers that Assay answers as well."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from assay_service.signal_settings import Frozen, Name

WireName = Literal[
    "aws", "chat", "cohere", "jina", "llamafactory", "nemo_gym", "openrlhf", "sglang", "slime", "tei", "vllm"
]


class Floor(Frozen):
    """The score that a refused item gets.

    Attributes:
        floor: score on the scale of the blend, before any activation of the wire.
    """

    floor: float = Field(allow_inf_nan=False)


class WireSettings(Frozen):
    """The settings of one wire.

    Attributes:
        model: the signal or blend of requests that cannot name one; None takes the service's default.
        policy: directory of the tokenizer and template of the policy whose rendered text the wire receives; None reads
            such text by the template of the reward model.
        on_item_error: "fail" refuses the whole request where an item is refused, because these wires have no errors of
            single items. `floor: VALUE` gives refused items this score; a response header and a metric count them.
        overload_status: HTTP status for a full queue; None takes the wire's own.
    """

    model: Name | None = None
    policy: str | None = None
    on_item_error: Literal["fail"] | Floor = "fail"
    overload_status: Literal[429, 503] | None = None


class CompatSettings(Frozen):
    """The settings of all wires; each wire is served under `/compat/NAME`.

    Attributes:
        root: the wire that is served at the root as well; a path that Assay itself serves is an error at start.
        wires: settings by name of the wire.
    """

    root: WireName | None = None
    wires: Mapping[WireName, WireSettings] = {}
