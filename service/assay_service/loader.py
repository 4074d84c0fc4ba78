"""Load every signal of a configuration into a registry, and check it against its checkpoint's manifest."""

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch

from assay_service import preset
from assay_service.errors import StartError
from assay_service.fidelity import identify, read_fidelity
from assay_service.golden import check_forward, check_preset_rows, check_rows, find_difference
from assay_service.logs import START, log_step
from assay_service.preset_keys import find_golden, find_renderings
from assay_service.registry import Provenance, Registry, Signal
from assay_service.resolve import ResolvedSignal, resolve
from assay_service.scoring import checkpoint, manifest, tokenizer
from assay_service.scoring.base_files import load_base
from assay_service.scoring.compute import Number, decide_compute
from assay_service.scoring.hashing import hash_files
from assay_service.scoring.invariance import make_invariant
from assay_service.scoring.item import PROBE
from assay_service.scoring.kernels.build import explain_slow_dtype, has_units
from assay_service.scoring.manifest import Manifest
from assay_service.scoring.model import RewardModel
from assay_service.scoring.quantization import Quantization
from assay_service.scoring.reading import ReadingRule
from assay_service.scoring.render import Renderer
from assay_service.scoring.rules import RenderRules
from assay_service.scoring.served_model import ServedModel
from assay_service.scoring.token_reader import TokenReader
from assay_service.scoring.vllm_classifier import VllmClassifier
from assay_service.settings import Settings
from assay_service.signal_heads import StoredHead, build_head, read_weights
from assay_service.start_report import log_how_served, warn_of_unprinted

_log = logging.getLogger("assay")


def load(settings: Settings) -> Registry:
    """Load all signals of a configuration.

    Raises:
        StartError: a signal cannot be served; the error names the signal and the key, file or tensor.
    """
    return load_resolved(settings, resolve(settings))


def load_resolved(settings: Settings, resolved: Mapping[str, ResolvedSignal]) -> Registry:
    """Load the weights of signals that are resolved already.

    Args:
        settings: configuration that the signals belong to.
        resolved: resolved signals by name.

    Raises:
        StartError: a signal cannot be served; the error names the signal and the file or tensor.
    """
    signals, invariant = load_signals(resolved)
    blends = {name: blend.build_blend(name) for name, blend in settings.blends.items()}
    return Registry(signals, blends, settings.default, invariant)


def load_signals(
    resolved: Mapping[str, ResolvedSignal], alone: AbstractContextManager[object] | None = None
) -> tuple[dict[str, Signal], dict[str, bool]]:
    """Load signals, make them invariant to the batch as far as possible, and compare them with their golden rows.

    Args:
        resolved: resolved signals by name; those on the same base share it in memory.
        alone: context in which nothing else computes, where other threads compute; see `load_base`.

    Returns:
        The signals by name, and for each name whether its scores do not depend on the batch.

    Raises:
        StartError: a signal cannot be served; the error names the signal and the file or tensor.
    """
    loader = _Loader(alone)
    for name, signal in resolved.items():  # weights can take minutes
        with _prefix_errors(f"signals.{name}"):
            loader.check_renderings(name, signal)
    signals: dict[str, Signal] = {}
    for name, signal in resolved.items():
        with _prefix_errors(f"signals.{name}"):
            signals[name] = loader.load_signal(name, signal)
    with _prefix_errors("making scores invariant"), log_step("testing that scores do not depend on the batch"):
        invariant = _make_invariant(signals)
    for name, checked_signal in signals.items():  # the step above chose the kernels that will serve
        with _prefix_errors(f"signals.{name}"), log_step("scoring a plain item and the golden rows of signal %s", name):
            check_forward(checked_signal)
            check_rows(checked_signal, resolved[name].claims.golden, "the manifest")
            _check_preset(checked_signal)
        log_how_served(checked_signal, is_invariant=invariant[name])
    return signals, invariant


@contextmanager
def _prefix_errors(where: str) -> Iterator[None]:
    """Prefix the errors of a block with `where`; any exception that a library raises for a broken file is one line."""
    try:
        yield
    except StartError as error:
        raise StartError(f"{where}: {error.message}") from error
    except Exception as error:
        raise StartError(f"{where}: {type(error).__name__}: {error}; check files and memory, or report it") from error


class _Loader:
    """A loader of signals, in which signals on the same base share it in memory; `alone` is that of `load_base`."""

    def __init__(self, alone: AbstractContextManager[object] | None) -> None:
        self._alone = alone
        self._models: dict[tuple[Path, Quantization | None, str, str, str], RewardModel] = {}
        self._hashes: dict[tuple[Path, ...], str] = {}
        self._renderers: dict[tuple[Path, RenderRules, int], tuple[Renderer, tuple[str, ...]]] = {}

    def check_renderings(self, name: str, resolved: ResolvedSignal) -> None:
        """Compare the golden renderings of the preset behind a signal, before any weights are loaded.

        Raises:
            StartError: tokenizer or template give other ids than those that a public source states.
        """
        if resolved.preset is None or not (renderings := find_renderings(resolved.preset)):
            return
        known, where = preset.read(resolved.preset.name), f"preset {resolved.preset.name}"
        # Rows of the embedding; without the key, an id outside of them is found when the weights are loaded.
        rows = resolved.config.get("vocab_size", sys.maxsize)
        renderer, _ = self._load_renderer(resolved.tokenizer, resolved.rules, rows)
        difference = find_difference(renderer, renderings, known.model)
        if difference is None:
            logging.getLogger(START).info("signals.%s: renders %d conversations as %s", name, len(renderings), where)
        elif "rendered" in known.unverified:  # the refusal of a published template would rest on a guess
            _log.warning(
                "signals.%s: %s: %s. No public text states this rendering: compare it with the model card",
                *(name, where, difference),
            )
        else:
            raise StartError(f"{where}: {difference}; remove `preset` for another checkpoint")

    def load_signal(self, name: str, resolved: ResolvedSignal) -> Signal:
        """Load one signal and compare it with the hashes of its manifest.

        Raises:
            StartError: a file of the signal cannot be served, or a hash is not the one of its manifest.
        """
        base, settings, head_rule = resolved.base, resolved.settings, resolved.head
        for warning in resolved.warnings:
            _log.warning("signals.%s: %s", name, warning)
        # With several adapters, only the first one was trained on the plain base.
        first = manifest.read(resolved.adapters[0]) if resolved.adapters else resolved.claims
        base_sha256 = self._check_hash(base, resolved.weights, first)
        model: ServedModel
        if settings.engine == "vllm":
            adapters, head = read_weights(resolved)
            limit, devices = resolved.rules.max_length, settings.tensor_parallel_size
            with log_step("loading %s by vLLM (%s, %d devices)", base, resolved.dtype, devices):
                model = VllmClassifier(base, resolved.config, resolved.dtype, limit, devices)
            compute: Number = resolved.dtype
        else:
            trunk, adapters, head = self._add_to_base(name, resolved)
            model, compute = trunk, trunk.compute
        renderer, unprinted = self._load_renderer(resolved.tokenizer, resolved.rules, model.get_vocabulary_size(name))
        if resolved.claims.template_sha256 not in (None, renderer.template.sha256):
            raise StartError("template: its hash is not template_sha256 of the manifest; declare the one of training")
        if resolved.claims.template_sha256 is None:  # a template with a hash is the one of training
            warn_of_unprinted(name, unprinted)
        provenance = Provenance(
            model=resolved.model,
            # The directory of a hub snapshot is named by its commit.
            revision=base.name if resolved.revision else base_sha256,
            adapter_sha256=checkpoint.hash_adapters(adapters),
            head_sha256=head.sha256,
            template_sha256=renderer.template.sha256,
            dtype=resolved.dtype,
            compute=compute,
            quantization=None if resolved.quantization is None else resolved.quantization.method,
            weights_sha256=None if resolved.quantization is None else base_sha256,
        )
        config_sha256 = hash_files([base / "config.json"])
        reader = TokenReader(
            f"signals.{name}", tokenizer.hash_file(resolved.tokenizer), renderer.tokenizer, renderer.transcript
        )
        return Signal(
            *(name, resolved.kind, renderer, model, resolved.moments, provenance, base_sha256, config_sha256, reader),
            ReadingRule(head_rule.has_std, resolved.aggregate, resolved.kind == "absolute", head_rule.likelihood),
            resolved.preset,
            read_fidelity(resolved.adapter or base, identify(provenance.describe()), compute),
            resolved.claims.reference,
        )

    def _check_hash(self, base: Path, weights: Sequence[Path], claims: Manifest) -> str:
        key = tuple(weights)
        if key not in self._hashes:  # hashing reads the whole file, so each base is hashed once
            with log_step("hashing the weights of %s (%.2f GB)", base, sum(p.stat().st_size for p in weights) / 1e9):
                self._hashes[key] = hash_files(weights)
        if claims.base_sha256 not in (None, self._hashes[key]):
            raise StartError(
                f"{base}: base_sha256 differs: the adapter was trained on other weights; declare its own base"
            )
        return self._hashes[key]

    def _load_model(self, resolved: ResolvedSignal, device: torch.device) -> RewardModel:
        base, quantization, dtype = resolved.base, resolved.quantization, resolved.dtype
        compute = decide_compute(resolved.compute, dtype, device.type, has_units=has_units(dtype, device))
        key = (base, quantization, dtype, compute, str(device))
        if key not in self._models:
            if (slow := explain_slow_dtype(compute, device)) is not None:
                _log.warning("base %s: %s", base, slow)
            with log_step("loading base %s (%s, computing in %s on %s)", base, dtype, compute, device):
                weights = load_base(base, getattr(torch, dtype), device, quantization, self._alone)
                self._models[key] = RewardModel(weights, device, compute)
        return self._models[key]

    def _add_to_base(
        self, name: str, resolved: ResolvedSignal
    ) -> tuple[RewardModel, list[checkpoint.Adapter], StoredHead]:
        """Load the base of a signal, unless another signal has it, and add the signal's adapters and head to it."""
        model = self._load_model(resolved, _choose_device(resolved.settings.device))
        adapters, head = read_weights(resolved)
        model.add_signal(name, build_head(head, resolved.head, model), *adapters)
        _log.info(
            "signals.%s: takes %.1f MiB of memory in addition to its base", name, model.count_own_bytes(name) / 2**20
        )
        return model, adapters, head

    def _load_renderer(
        self, source: Path, rules: RenderRules, vocabulary_size: int
    ) -> tuple[Renderer, tuple[str, ...]]:
        """Return the renderer of these rules, and the special tokens that only the tokenizer would add.

        Signals with the same rules share a renderer, so that each item is rendered once for all of them.
        """
        key = (source, rules, vocabulary_size)
        if key not in self._renderers:
            loaded = tokenizer.load(source)
            others = (r for (path, *_), (r, _) in self._renderers.items() if path == source)
            like = next((r for r in others if rules.reads_text_as(r.rules)), None)
            renderer = Renderer(loaded, rules, vocabulary_size, like)
            probe = renderer.render(PROBE).sequence
            unprinted = tokenizer.find_unprinted(loaded, source, probe.ids, probe.boundary)
            self._renderers[key] = renderer, unprinted
        return self._renderers[key]


def _choose_device(declared: str | None) -> torch.device:
    """Return the declared device of a base, else CUDA where there is a CUDA device."""
    device = torch.device(declared or ("cuda" if torch.cuda.is_available() else "cpu"))
    # torch would fail only when it loads the weights, with an error that names no key.
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise StartError(
            f"device: {device}: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices; check the "
            "driver and that torch is built for CUDA, or declare `device: cpu`"
        )
    return device


def _make_invariant(signals: Mapping[str, Signal]) -> dict[str, bool]:
    """Choose kernels whose logits do not depend on the batch, and return for each signal whether the test succeeded.

    It needs all signals of a base at once, because they share its kernels.
    """
    longest: dict[RewardModel, dict[str, int]] = {}
    for name, signal in signals.items():
        if isinstance(signal.model, RewardModel):
            longest.setdefault(signal.model, {})[name] = signal.renderer.rules.max_length
    stepwise = {name for name, signal in signals.items() if signal.renderer.rules.steps is not None}
    gated = {name for name, signal in signals.items() if signal.renderer.rules.gate is not None}
    predicting = {
        name for name, signal in signals.items() if signal.renderer.rules.score_position == "completion_tokens"
    }
    proved: dict[str, bool] = {}
    for model, names in longest.items():
        proved |= make_invariant(model, names, stepwise, gated, predicting)
    return dict.fromkeys(signals, False) | proved  # vLLM plans its batches by itself, so nothing is tested there


def _check_preset(signal: Signal) -> None:
    """Recompute the golden rows of the preset behind a signal, if it has any that its keys must give."""
    golden = None if signal.preset is None else find_golden(signal.preset)
    if signal.preset is None or golden is None:
        return
    check_preset_rows(signal, golden, signal.preset.name)
    logging.getLogger(START).info(
        "signals.%s: gives the %d golden rows of preset %s", signal.name, len(golden.rows), signal.preset.name
    )
