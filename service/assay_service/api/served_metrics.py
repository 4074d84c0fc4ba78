"""Show in the metrics which signals are served, and what decides their scores."""

import platform
from dataclasses import asdict
from importlib.metadata import version

from assay_service.registry import Registry, Signal
from assay_service.telemetry.metrics import Metrics


def show_signals(metrics: Metrics, registry: Registry, before: Registry | None = None) -> None:
    """Describe the signals of a registry in the metrics, in place of those of an earlier one.

    Args:
        metrics: the metrics of the application.
        registry: the registry that serves from now on.
        before: the registry that served until now; None at the start.
    """
    metrics.build.info(_describe_build(registry))
    for name in () if before is None else before.signals.keys() - registry.signals.keys():
        metrics.models.remove(name)
    for name, signal in registry.signals.items():
        metrics.models.labels(name).info(_describe_model(signal))
        metrics.not_finite.labels(name)  # 0 from the start: an alert sees only an increase
    metrics.windows.serve(registry.signals, registry.references)


def _describe_build(registry: Registry) -> dict[str, str]:
    """Return the labels of the metric `assay_build`, by which a dashboard shows when a score could change."""
    return {
        "version": version("assay-rewards"),
        "fingerprint": registry.fingerprint(),
        "torch": version("torch"),
        "python": platform.python_version(),
    }


def _describe_model(signal: Signal) -> dict[str, str]:
    """Return the labels of the metric `assay_model`; what a signal does not have is empty."""
    return {name: value or "" for name, value in asdict(signal.provenance).items()} | {"kind": signal.kind}
