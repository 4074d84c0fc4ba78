"""Define what decided a score: the rule of a blend, and the weights and files behind its signals."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Preset:
    """The preset behind a signal: its name, the SHA-256 of its file and template, and what differs from it.

    `golden` is "run" if Assay recomputed published scores, and "published" if only public text has them. It is
    "rendering" if only the ids of a conversation are known, else "not run".
    `changed` are the keys to which the service's configuration gives another value.
    """

    name: str
    sha256: str
    golden: str
    changed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SignalProvenance:
    """The weights and files behind a signal; `adapter_sha256` is None if it has no adapter.

    `dtype` is that of the weights, and `compute` says in which numbers the base computes. `quantization` and
    `weights_sha256` are the format and hash of quantized weights, and None for plain weights.
    """

    model: str
    revision: str
    adapter_sha256: str | None
    head_sha256: str
    template_sha256: str
    dtype: str
    compute: str
    quantization: str | None = None
    weights_sha256: str | None = None
    preset: Preset | None = None


@dataclass(frozen=True, slots=True)
class LengthPenalty:
    """The logits that each token of a completion subtracts from its score, and the signal whose tokens are counted."""

    per_token: float
    signal: str


@dataclass(frozen=True, slots=True)
class Blend:
    """The rule score = Σ w·logit − length penalty; `standardise` names the transformation of the logits."""

    name: str | None
    weights: Mapping[str, float]
    standardise: str
    length_penalty: LengthPenalty | None = None


@dataclass(frozen=True, slots=True)
class Provenance:
    """Everything that decided the scores. Equal `fingerprint`: same text, same score. Comparisons have no `blend`."""

    blend: Blend | None
    signals: Mapping[str, SignalProvenance]
    fingerprint: str
