"""Score a probe on a served base with quantized weights, and hold the logit to that of the rounded weights."""

from typing import Any

import pytest
import torch

from assay_service import registry
from assay_service.scoring.item import PROBE
from tests import checkpoints


def score(served: registry.Registry) -> tuple[float, tuple[int, ...]]:
    """The logit of a plain item, and its ids."""
    signal = served.signals["s"]
    sequence = signal.renderer.render(PROBE).sequence
    with torch.inference_mode():
        return signal.model.logits([sequence], "s").item(), sequence.ids


def check_rounding(served: registry.Registry, model: Any, rounded: Any, tolerance: float) -> None:
    """Holds the served logit to that of the rounded weights, and not to that of the weights before."""
    logit, ids = score(served)
    assert logit == pytest.approx(checkpoints.oracle(rounded, ids), abs=tolerance)
    assert logit != pytest.approx(checkpoints.oracle(model, ids), abs=1e-4)
