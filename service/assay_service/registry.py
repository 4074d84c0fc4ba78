"""Signals and blends by name, with their provenance and the fingerprint over it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from assay_service.errors import UnknownModel
from assay_service.scoring import manifest
from assay_service.scoring.blend import Blend, Moments
from assay_service.scoring.model import RewardModel
from assay_service.scoring.render import Renderer

CUSTOM = "custom"

# What decides, besides the checkpoint, which ids a text becomes and which logit they give.
_VERSIONED = ("assay-rewards", "torch", "transformers", "tokenizers", "peft", "jinja2")


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a signal's numbers come from.

    Attributes:
        model: the base as configured.
        revision: commit of a hub id, else SHA-256 of the base's weights.
        adapter_sha256: of the adapters' tensors and settings, in their order; None without adapter.
        head_sha256: of the head's values.
        template_sha256: of the chat template.
        dtype: what the base computes in.
    """

    model: str
    revision: str
    adapter_sha256: str | None
    head_sha256: str
    template_sha256: str
    dtype: str


@dataclass(frozen=True, slots=True)
class Signal:
    """A loaded signal.

    Attributes:
        name: as served.
        kind: what its logit means.
        renderer: items to sequences.
        model: holds its adapter and head; shared with other signals on the same base.
        moments: for blends that standardise; None where unknown.
        provenance: where it comes from.
        base_sha256: of the base's weights.
        config_sha256: of the base's `config.json`, which decides what the weights compute.
    """

    name: str
    kind: manifest.Kind
    renderer: Renderer
    model: RewardModel
    moments: Moments | None
    provenance: Provenance
    base_sha256: str
    config_sha256: str


class Registry:
    """All that is served.

    Args:
        signals: by name.
        blends: by name.
        default: the name of a signal or blend.
        invariant: of each signal, whether its scores were proved at start not to depend on the batch.
    """

    def __init__(
        self, signals: Mapping[str, Signal], blends: Mapping[str, Blend], default: str, invariant: Mapping[str, bool]
    ) -> None:
        self.signals = signals
        self.invariant = invariant
        self.blends = blends
        self.default = default
        # Once, not with every answer: reading the versions opens files.
        self._libraries = {name: version(name) for name in _VERSIONED}
        self._described = {name: _described(signal) for name, signal in signals.items()}

    @property
    def moments(self) -> dict[str, Moments]:
        """The moments that are known."""
        return {name: signal.moments for name, signal in self.signals.items() if signal.moments is not None}

    def blend(self, model: str | None, weights: Mapping[str, float] | None) -> Blend:
        """The rule that a request asks for.

        Args:
            model: a signal or blend; None with `weights` None means the default.
            weights: weights over signals.

        Raises:
            UnknownModel: there is no such signal or blend.
        """
        if weights is not None:
            unknown = sorted(weights.keys() - self.signals.keys())
            if unknown:
                raise UnknownModel(
                    f"not a served signal; signals are {', '.join(self.signals)}", param=f"weights.{unknown[0]}"
                )
            return Blend(CUSTOM, dict(weights))
        name = self.default if model is None else model
        if name in self.blends:
            return self.blends[name]
        if name in self.signals:
            return Blend(name, {name: 1.0})
        served = ", ".join([*self.signals, *self.blends])
        raise UnknownModel(f"neither a signal nor a blend; served are {served}", param="model")

    @property
    def identities(self) -> dict[str, str]:
        """All that decides a logit besides the sequence, for the signals whose invariance is proved."""
        proved = [name for name in self.signals if self.invariant[name]]
        return {name: self.fingerprint(Blend(name, {name: 1.0})) for name in proved}

    def fingerprint(self, blend: Blend | None = None) -> str:
        """SHA-256 over everything that decides a score except the text.

        Args:
            blend: the rule; None covers all signals.
        """
        names = sorted(self.signals if blend is None else blend.weights)
        described = {name: self._described[name] for name in names}
        rule = (
            None
            if blend is None
            else {"weights": dict(sorted(blend.weights.items())), "standardise": blend.standardise}
        )
        text = json.dumps({"signals": described, "blend": rule, **self._libraries}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _described(signal: Signal) -> dict[str, Any]:
    """What decides a signal's logits besides the text, for the fingerprint."""
    rules = asdict(signal.renderer.rules)
    return {
        **asdict(signal.provenance),
        **{key: value for key, value in rules.items() if key != "template"},
        "kind": signal.kind,
        "tokenizer_sha256": signal.renderer.tokenizer_sha256,
        "base_sha256": signal.base_sha256,
        "config_sha256": signal.config_sha256,
        "device": signal.model.device.type,
        "kernels": signal.model.kernels.name,
        "moments": None if signal.moments is None else asdict(signal.moments),
    }
