"""Define the settings of the compatible wires: the HTTP interfaces of other servers that Assay answers as well."""

import math
import string
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from assay_service.signal_settings import Frozen, Name

WireName = Literal[
    "aws", "chat", "cohere", "jina", "llamafactory", "nemo_gym", "openrlhf", "sglang", "slime", "tei", "vllm"
]

# Paths that Assay itself serves, by the wires that have the same ones; such a wire cannot be at the root. They are
# listed here, so that a clash is found before the application and its models are loaded.
NATIVE_PATHS: Mapping[WireName, tuple[str, ...]] = {
    "chat": ("GET /v1/models",),
    "sglang": ("GET /v1/models", "POST /v1/score"),
    "vllm": ("GET /v1/models", "POST /v1/score"),
}


_MOST_FLOAT32 = 3.4028234663852886e38


class Floor(Frozen):
    """The score that a refused item gets.

    Attributes:
        floor: score on the scale of the blend, before any activation of the wire; embeddings carry it in 32 bits.
    """

    floor: float = Field(allow_inf_nan=False, ge=-_MOST_FLOAT32, le=_MOST_FLOAT32)


def _check_fate(value: object) -> object:
    """Return the declared fate of refused items as it is; pydantic alone would report both forms of the union."""
    number = value.get("floor") if isinstance(value, dict) and value.keys() == {"floor"} else None
    is_number = isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
    if not (value == "fail" or isinstance(value, Floor) or is_number):
        raise ValueError("must be `fail`, or `{floor: NUMBER}` with a finite number")
    return value


class WireSettings(Frozen):
    """The settings of one wire.

    Attributes:
        model: the signal or blend of requests that cannot name one; None takes the service's default.
        policy: directory of the tokenizer and template of the policy whose rendered text the wire receives. None reads
            such text by the template of the reward model.
        on_item_error: "fail" refuses the whole request where an item is refused, because these wires have no errors of
            single items. `floor: VALUE` gives refused items this score; a response header and a metric count them.
        overload_status: HTTP status for a full queue; None takes the wire's own.
    """

    model: Name | None = None
    policy: str | None = None
    on_item_error: Annotated[Literal["fail"] | Floor, BeforeValidator(_check_fate)] = "fail"
    overload_status: Literal[429, 503] | None = None


def _check_content(text: str) -> str:
    """Return a form of `content` if it has a placeholder and no other one than `{pairs}` and `{score}`."""
    try:
        fields = {
            (name, spec, conversion) for _, name, spec, conversion in string.Formatter().parse(text) if name is not None
        }
    except ValueError:
        fields = set()
    if not fields or not fields <= {("pairs", "", None), ("score", "", None)}:
        raise ValueError("must have {pairs} or {score}, and no other braces")
    return text


class ChatSettings(WireSettings):
    """The settings of the wire `chat`.

    Attributes:
        content: form of the text that carries the scores. `{score}` is the score; `{pairs}` is `NAME:SCORE` of the
            signal or blend, and of all signals of a blend, with commas in between.
    """

    content: Annotated[str, AfterValidator(_check_content)] = "{pairs}"

    def format_content(self, score: float, pairs: Mapping[str, float]) -> str:
        """Return the text that carries a score; every number is the shortest text that reads back as it."""
        joined = ",".join(f"{name}:{value!r}" for name, value in pairs.items())
        return self.content.format(score=repr(score), pairs=joined)


class SlimeSettings(WireSettings):
    """The settings of the wire `slime`.

    Attributes:
        parts: whether the answer is an object for slime's `--reward-key`, with the score as `reward` and the logit of
            each signal. Otherwise it is the score alone.
    """

    parts: bool = False


# The name of the score among the parts of the wire `slime`, which no signal can have.
SCORE_KEY = "reward"

# The settings of wires that have keys of their own.
_OWN: Mapping[str, type[WireSettings]] = {"chat": ChatSettings, "slime": SlimeSettings}


def find_settings_class(name: str) -> type[WireSettings]:
    """Return the class of the settings of a wire; an unknown name has those that all wires share."""
    return _OWN.get(name, WireSettings)


class Wires(TypedDict, total=False):
    """Settings by name of the wire."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    aws: WireSettings
    chat: ChatSettings
    cohere: WireSettings
    jina: WireSettings
    llamafactory: WireSettings
    nemo_gym: WireSettings
    openrlhf: WireSettings
    sglang: WireSettings
    slime: SlimeSettings
    tei: WireSettings
    vllm: WireSettings


class CompatSettings(Frozen):
    """The settings of all wires; each wire is served under `/compat/NAME`.

    Attributes:
        root: the wire that is served at the root as well; one of `NATIVE_PATHS` cannot be.
        wires: settings by name of the wire.
    """

    root: WireName | None = None
    wires: Wires = Field(default_factory=Wires)

    def get_wire(self, name: WireName) -> WireSettings:
        """Return the settings of a wire, or their defaults."""
        return self.wires.get(name, find_settings_class(name)())
