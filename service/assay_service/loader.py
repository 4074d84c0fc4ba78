"""Load every signal of a configuration into a registry, and check it against what its checkpoint claims."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from assay_service.errors import StartError
from assay_service.registry import Provenance, Registry, Signal
from assay_service.resolve import ResolvedSignal, resolve
from assay_service.scoring import checkpoint, files, manifest
from assay_service.scoring.architectures import Architecture, activation_of
from assay_service.scoring.head import Dense, Head, checked
from assay_service.scoring.item import PROBE, Item, Message
from assay_service.scoring.manifest import GoldenRow, Manifest
from assay_service.scoring.mix import Blend
from assay_service.scoring.model import RewardModel
from assay_service.scoring.proof import made_invariant
from assay_service.scoring.render import Renderer
from assay_service.scoring.rules import RenderRules
from assay_service.settings import Settings

# A golden row may differ from training by what another machine's kernels do, not by another model.
_GOLDEN_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.05}


def load(settings: Settings) -> Registry:
    """Load everything that `settings` names.

    Raises:
        StartError: naming the signal and the key, file or tensor.
    """
    return load_resolved(settings, resolve(settings))


def load_resolved(settings: Settings, resolved: Mapping[str, ResolvedSignal]) -> Registry:
    """Load the weights of signals that are resolved already.

    Raises:
        StartError: naming the signal and the file or tensor.
    """
    loader = _Loader()
    signals = {}
    for name, signal in resolved.items():
        with _naming(f"signals.{name}"):
            signals[name] = loader.signal(name, signal)
    with _naming("making scores invariant"):
        invariant = _made_invariant(signals)
    for name, checked_signal in signals.items():  # only now is the forward the one that serves
        with _naming(f"signals.{name}"):
            _check_forward(checked_signal)
            _check_golden(checked_signal, resolved[name].claims.golden)
    blends = {name: Blend(name, dict(b.weights), b.standardise) for name, b in settings.blends.items()}
    return Registry(signals, blends, settings.default, invariant)


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Says where an error came from; whatever a broken file makes a library raise is one line as well."""
    try:
        yield
    except StartError as error:
        raise StartError(f"{where}: {error.message}") from error
    except Exception as error:
        raise StartError(f"{where}: {type(error).__name__}: {error}") from error


class _Loader:
    """Load signals one by one; signals on the same base share it in memory."""

    def __init__(self) -> None:
        self._models: dict[tuple[Path, torch.dtype, str], RewardModel] = {}
        self._hashes: dict[Path, str] = {}
        self._renderers: dict[tuple[Path, RenderRules, int], Renderer] = {}

    def signal(self, name: str, resolved: ResolvedSignal) -> Signal:
        """Load one signal and check it as far as its files go."""
        base, settings = resolved.base, resolved.settings
        base_sha256 = self._checked_hash(base, resolved.claims)
        device = torch.device(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        model = self._model(base, getattr(torch, resolved.dtype), device)
        adapter, head = _weights(resolved)
        _check_head(head.name, resolved.rules.score_position, model.architecture)
        if resolved.rules.score_position == "pooler":
            head = replace(head, dense=_dense(resolved.adapter or base, base, model.architecture))
        model.add_signal(name, checked(_head(head, resolved.config), model.hidden_size, head.name), adapter)
        renderer = self._renderer(resolved.tokenizer, resolved.rules, model.vocabulary_size)
        if resolved.claims.template_sha256 not in (None, renderer.template.sha256):
            raise StartError("template: not the one that the checkpoint was trained with (template_sha256 differs)")
        provenance = Provenance(
            model=settings.base,
            revision=base.name if settings.revision else base_sha256,
            adapter_sha256=None if adapter is None else adapter.sha256,
            head_sha256=head.sha256,
            template_sha256=renderer.template.sha256,
            dtype=resolved.dtype,
        )
        config_sha256 = files.sha256_of([base / "config.json"])
        return Signal(name, resolved.kind, renderer, model, resolved.moments, provenance, base_sha256, config_sha256)

    def _checked_hash(self, base: Path, claims: Manifest) -> str:
        if base not in self._hashes:
            self._hashes[base] = files.sha256_of(files.weight_files(base))
        if claims.base_sha256 not in (None, self._hashes[base]):
            raise StartError(f"{base}: the weights are not those that the adapter was trained on (base_sha256 differs)")
        return self._hashes[base]

    def _model(self, base: Path, dtype: torch.dtype, device: torch.device) -> RewardModel:
        key = (base, dtype, str(device))
        if key not in self._models:
            self._models[key] = RewardModel.load(base, dtype, device)
        return self._models[key]

    def _renderer(self, source: Path, rules: RenderRules, vocabulary_size: int) -> Renderer:
        """Return the renderer of these rules; signals that share it have each item rendered once."""
        key = (source, rules, vocabulary_size)
        if key not in self._renderers:
            self._renderers[key] = Renderer(_tokenizer(source), rules, vocabulary_size)
        return self._renderers[key]


def _weights(resolved: ResolvedSignal) -> tuple[checkpoint.Adapter | None, checkpoint.HeadTensors]:
    if resolved.adapter is None:
        head = checkpoint.read_head(files.weight_files(resolved.base))
        if head is None:
            raise StartError(
                f"{resolved.base}: no head; looked for score.weight, classifier.weight, v_head.*, value_head.*"
            )
        return None, head
    adapter, head = checkpoint.read_adapter(resolved.adapter)
    if head is None:
        raise StartError(
            f"{resolved.adapter}: the adapter has no head (score.weight, classifier.weight); "
            "train it with modules_to_save"
        )
    return adapter, head


def _made_invariant(signals: Mapping[str, Signal]) -> dict[str, bool]:
    """Whether each signal's scores are proved not to depend on the batch; all signals of a base are there by now."""
    longest: dict[RewardModel, dict[str, int]] = {}
    for name, signal in signals.items():
        longest.setdefault(signal.model, {})[name] = signal.renderer.rules.max_length
    return {name: proved for model, names in longest.items() for name, proved in made_invariant(model, names).items()}


def _dense(directory: Path, base: Path, architecture: Architecture) -> tuple[torch.Tensor, torch.Tensor]:
    """The layer before the head: the adapter's own where it was trained with the head, else the base's."""
    if architecture.dense is None:
        raise StartError("score_position: pooler is for encoders whose classifiers have a layer before the head")
    adapter = directory / files.ADAPTER_WEIGHTS
    sources = [*([adapter] if adapter.is_file() else []), *files.weight_files(base)]
    dense = checkpoint.read_dense(sources, architecture.dense)
    if dense is None:
        raise StartError(f"{base}: no {architecture.dense}.weight, which score_position pooler reads")
    return dense


def _check_head(name: str, position: manifest.ScorePosition, architecture: Architecture) -> None:
    """A head that was trained behind a dense layer is read behind it, or not at all."""
    if "out_proj" in name and (position != "pooler" or architecture.dense != "classifier.dense"):
        raise StartError(f"{name}: has a dense layer before it, which only score_position pooler of RoBERTa reads")


def _head(tensors: checkpoint.HeadTensors, config: Mapping[str, Any]) -> Head:
    dense = None if tensors.dense is None else Dense(*tensors.dense, activation_of(config))
    return Head(tensors.weight, tensors.bias, dense)


def _tokenizer(source: Path) -> Any:  # noqa: ANN401 - transformers' tokenizers have no common static type
    return AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)


def _logit(signal: Signal, item: Item) -> float:
    with torch.inference_mode():
        return signal.model.logits([signal.renderer.render(item).sequence], signal.name).item()


def _check_forward(signal: Signal) -> None:
    """Runs a real forward: a model that cannot score one plain item does not start."""
    logit = _logit(signal, PROBE)
    if not math.isfinite(logit):
        raise StartError(f"the model scores a plain item with {logit}")


def _check_golden(signal: Signal, golden: tuple[GoldenRow, ...]) -> None:
    """Recomputes the manifest's golden rows: the model that training saved is the one that was loaded."""
    tolerance = _GOLDEN_TOLERANCE[signal.provenance.dtype]
    for number, row in enumerate(golden):
        item = Item(tuple(Message(role, content) for role, content in row.messages), row.finish_reason)
        logit = _logit(signal, item)
        if not math.isclose(logit, row.logit, rel_tol=tolerance, abs_tol=tolerance):
            raise StartError(f"golden row {number}: the manifest says {row.logit:.6f}, the loaded model {logit:.6f}")
