"""Hold the loaded signals and the blends by name, with their provenance and the fingerprint over it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

from assay_service.errors import UnknownModel
from assay_service.fidelity import Fidelity
from assay_service.preset import PresetUse
from assay_service.scoring import manifest
from assay_service.scoring.blend import Blend, Moments
from assay_service.scoring.compute import Number
from assay_service.scoring.reading import ReadingRule
from assay_service.scoring.reference import ReferenceHistogram
from assay_service.scoring.render import Renderer
from assay_service.scoring.served_model import ServedModel
from assay_service.scoring.token_reader import TokenReader
from assay_service.scoring.trunk import Trunk

CUSTOM = "custom"  # name of a blend whose weights come with the request

# Libraries whose version decides, besides the checkpoint, a text's token ids or the logit that they give.
_VERSIONED = ("assay-rewards", "torch", "transformers", "tokenizers", "peft", "jinja2")


@dataclass(frozen=True, slots=True)
class Provenance:
    """The checkpoint, template and dtype that give a signal's logits.

    Attributes:
        model: name of the base, as configured.
        revision: commit of a hub id, else SHA-256 of the base's weights.
        adapter_sha256: SHA-256 of the adapters' tensors and settings, in their order; None without adapter.
        head_sha256: SHA-256 of the head's values.
        template_sha256: SHA-256 of the chat template.
        dtype: dtype of the base's weights.
        compute: numbers in which the base computes.
        quantization: format of the base's quantized weights; None for plain weights.
        weights_sha256: SHA-256 of the quantized weights; None for plain weights.
    """

    model: str
    revision: str
    adapter_sha256: str | None
    head_sha256: str
    template_sha256: str
    dtype: str
    compute: Number
    quantization: str | None = None
    weights_sha256: str | None = None

    def describe(self) -> dict[str, str | None]:
        """Return the fields by name; those of quantized weights only where there are such weights."""
        absent = () if self.quantization is not None else ("quantization", "weights_sha256")
        return {name: value for name, value in asdict(self).items() if name not in absent}


@dataclass(frozen=True, slots=True)
class Signal:
    """A loaded signal.

    Attributes:
        name: served name.
        kind: meaning of the logit: a Bradley-Terry reward, or a quality in 0..1 after the sigmoid.
        renderer: renderer of items to token sequences.
        model: model that holds the signal's adapters and head; signals on the same base share it.
        moments: mean and standard deviation of the logits, for blends that standardise; None where unknown.
        provenance: checkpoint, template and dtype.
        base_sha256: SHA-256 of the base's weights.
        config_sha256: SHA-256 of the base's `config.json`, which decides what the weights compute.
        token_reader: reader of token ids of this signal's tokenizer.
        reading: rule by which the numbers of the head become one logit.
        fidelity: measured difference from other numbers; None if it was never measured.
        reference: histogram of logits over a reference sample; None if the manifest has none. It decides no score.
        preset: preset behind the signal; None if there is none. It decides nothing that the rules do not say.
        reference: distribution of its logits on sample texts; None if it was never calibrated. It decides no score.
    """

    name: str
    kind: manifest.Kind
    renderer: Renderer
    model: ServedModel
    moments: Moments | None
    provenance: Provenance
    base_sha256: str
    config_sha256: str
    token_reader: TokenReader
    reading: ReadingRule
    preset: PresetUse | None = None
    fidelity: Fidelity | None = None
    reference: ReferenceHistogram | None = None


class Registry:
    """All served signals and blends.

    Args:
        signals: signals by name.
        blends: blends by name.
        default: name of the signal or blend of requests that name none.
        invariant: results of the test at start by name of the signal; True if scores do not depend on the batch.

    Attributes:
        trunks: trunks by the name of each signal; signals that share a forward pass have the same trunk.
        identities: fingerprints of everything that decides logits besides the sequence, by name of the trunk.
    """

    def __init__(
        self, signals: Mapping[str, Signal], blends: Mapping[str, Blend], default: str, invariant: Mapping[str, bool]
    ) -> None:
        self.signals = signals
        self.invariant = invariant
        self.trunks = _group(signals)
        self.blends = blends
        self.default = default
        # Read once and not for every answer, because reading a version opens files.
        self._libraries = {name: version(name) for name in _VERSIONED}
        self._described = {name: _describe(signal) for name, signal in signals.items()}
        self.identities = self._identify()

    @property
    def references(self) -> dict[str, ReferenceHistogram]:
        """Return the reference histograms of the signals that have one, by name."""
        return {name: signal.reference for name, signal in self.signals.items() if signal.reference is not None}

    @property
    def moments(self) -> dict[str, Moments]:
        """Return the moments of the signals whose moments are known, by name."""
        return {name: signal.moments for name, signal in self.signals.items() if signal.moments is not None}

    def add(self, signals: Mapping[str, Signal], invariant: Mapping[str, bool]) -> "Registry":
        """Return a registry that has further signals, too; the arguments are those of the constructor."""
        return Registry({**self.signals, **signals}, self.blends, self.default, {**self.invariant, **invariant})

    def remove(self, name: str) -> "Registry":
        """Return a registry without one of the signals, which is neither the default nor part of a blend."""
        signals = {other: signal for other, signal in self.signals.items() if other != name}
        return Registry(signals, self.blends, self.default, {other: self.invariant[other] for other in signals})

    def blend(self, model: str | None, weights: Mapping[str, float] | None) -> Blend:
        """Return the blend that a request asks for; a single signal is a blend of itself with weight 1.

        Args:
            model: name of a signal or blend; None without `weights` takes the default.
            weights: weights by name of the signal; they take precedence over `model`.

        Raises:
            UnknownModel: no signal or blend of that name is served.
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

    def _identify(self) -> dict[str, str]:
        """Return a fingerprint of everything that decides logits besides the sequence, by name of the trunk.

        A trunk whose scores may depend on the batch has none, so that the engine never reuses its logits.
        """
        trunks = {trunk.name: trunk for trunk in self.trunks.values()}
        return {
            name: self.fingerprint(Blend(name, dict.fromkeys(trunk.signals, 1.0)))
            for name, trunk in trunks.items()
            if all(self.invariant[signal] for signal in trunk.signals)
        }

    def fingerprint(self, blend: Blend | None = None) -> str:
        """Return the SHA-256, in hexadecimal, of everything that decides a score except the text.

        Args:
            blend: blend whose signals, weights, scaling and penalty are covered; None covers all signals.
        """
        # Names and weights are sorted, so that their order in a request or a YAML file does not matter.
        names = sorted(self.signals if blend is None else blend.weights)
        described = {name: self._described[name] for name in names}
        rule = None if blend is None else _describe_rule(blend)
        text = json.dumps({"signals": described, "blend": rule, **self._libraries}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _group(signals: Mapping[str, Signal]) -> dict[str, Trunk]:
    """Return the trunk of each signal: the same for signals with the same base, adapters and renderer."""
    members: dict[tuple[int, tuple[str, ...], int], list[Signal]] = {}
    for signal in signals.values():
        adapters = signal.model.get_adapter_names(signal.name)
        members.setdefault((id(signal.model), adapters, id(signal.renderer)), []).append(signal)
    trunks: dict[str, Trunk] = {}
    for group in members.values():
        names = tuple(signal.name for signal in group)
        trunks |= dict.fromkeys(names, Trunk("+".join(names), group[0].model, names))
    return trunks


def _describe_rule(blend: Blend) -> dict[str, Any]:
    """Return everything that makes a score of logits, for the fingerprint."""
    rule = {"weights": dict(sorted(blend.weights.items())), "standardise": blend.standardise}
    # Omitted where there is none, so that blends without a penalty keep the fingerprint that they had before.
    return rule if blend.length_penalty is None else {**rule, "length_penalty": asdict(blend.length_penalty)}


def _describe(signal: Signal) -> dict[str, Any]:
    """Return everything that decides a signal's logits besides the text, for the fingerprint."""
    rules = asdict(replace(signal.renderer.rules, steps=None))
    del rules["steps"]
    # Omitted where there are none, so that other signals keep the fingerprint that they had before.
    rules = {key: rule for key, rule in rules.items() if rule is not None or key not in ("gate", "neutral_prompt")}
    if signal.reading.likelihood is not None:
        rules["likelihood"] = signal.reading.likelihood
    if (steps := signal.renderer.rules.steps) is not None:
        rules |= {"steps": steps.model_dump(), "aggregate": signal.reading.aggregate}
    return {
        **signal.provenance.describe(),
        # The provenance holds the template's hash already.
        **{key: value for key, value in rules.items() if key != "template"},
        "kind": signal.kind,
        "tokenizer_sha256": signal.renderer.tokenizer_sha256,
        "base_sha256": signal.base_sha256,
        "config_sha256": signal.config_sha256,
        "device": signal.model.device.type,
        "kernels": signal.model.kernels.name,
        "moments": None if signal.moments is None else asdict(signal.moments),
    }
