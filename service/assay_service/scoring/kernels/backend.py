"""Define the protocol that every implementation of a base's layers and attention follows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from transformers import PreTrainedModel

from assay_service.scoring.layout import Layout

# Arguments of transformers' attention that do not change what Assay computes. Positions are applied before attention,
# there is no cache, models run in eval mode (no dropout), and results are deterministic. `masks` serves one back end.
_WITHOUT_EFFECT = frozenset({"position_ids", "use_cache", "dropout", "deterministic", "masks"})


def check_arguments(arguments: Mapping[str, object]) -> None:
    """Refuse arguments of an attention layer that the back end does not implement; None has no effect.

    Raises:
        ValueError: an argument could change the result; to ignore it would give plausible wrong scores.
    """
    unknown = sorted(name for name, value in arguments.items() if value is not None and name not in _WITHOUT_EFFECT)
    if unknown:
        raise ValueError(f"attention has no {unknown[0]!r} here; this architecture cannot be computed by this back end")


class Backend(Protocol):
    """An implementation of the layers of a base on packed rows.

    Attributes:
        name: stable name, which is part of every fingerprint.
        reads_subset: whether the last layer computes only the tokens that a head reads.
    """

    name: str
    reads_subset: bool

    def prepare(self, base: PreTrainedModel) -> None:
        """Replace layers and attention of a base in place, once all adapters are on it."""
        ...

    def segments(self, row: Layout) -> Any:  # noqa: ANN401 - each attention function defines its own type
        """Return the segments of a packed row in the form that the attention function of `prepare` reads."""
        ...


@dataclass(frozen=True, slots=True)
class Kernels:
    """A description of the back end that computes a base.

    Attributes:
        name: name of the back end.
        reason: why the CPU kernels are not used; None where they are, or where FlashAttention is used instead.
    """

    name: str
    reason: str | None = None

    def __str__(self) -> str:
        """Return the description as one phrase, for logs."""
        return self.name if self.reason is None else f"{self.name} ({self.reason})"
