"""Arguments of attention layers: what changes a score is computed or refused, never ignored."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from assay_service.scoring.kernels import fused, torch_segments, varlen
from assay_service.scoring.layout import Layout, Span, TokenSequence, pack
from tests import checkpoints
from tests.service.test_parity import check_against_oracle, items, renderer_of

CONFIGS = {name: changes for name, (_, changes) in checkpoints.CONFIGS.items()}
ROPE = {name: CONFIGS[name]["rope_parameters"] for name in ("gemma3_text", "modernbert", "phi3")}
# Changes that take one property away.
CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("gemma2", {"attn_logit_softcapping": None}),
    ("gemma2", {"sliding_window": 256}),
    ("gemma2", {"query_pre_attn_scalar": 16}),
    ("gemma3_text", {"sliding_window": 256}),
    ("gemma3_text", {"query_pre_attn_scalar": 16}),
    ("gemma3_text", {"rope_parameters": dict.fromkeys(ROPE["gemma3_text"], ROPE["gemma3_text"]["full_attention"])}),
    ("modernbert", {"local_attention": 512}),
    ("modernbert", {"rope_parameters": dict.fromkeys(ROPE["modernbert"], ROPE["modernbert"]["full_attention"])}),
    ("phi3", {"sliding_window": None}),
    ("phi3", {"rope_parameters": ROPE["phi3"] | {"partial_rotary_factor": 1.0}}),
]


def layout() -> Layout:
    return pack([TokenSequence((1, 2, 3), 1, Span(2, 3))], share_prompts=True)


@pytest.mark.parametrize("name", ["s_aux", "position_bias", "softcapping", "attention_bias"])
@pytest.mark.parametrize("back_end", [torch_segments.packed_attention, fused.native_attention, varlen.varlen_attention])
def test_an_argument_that_no_back_end_knows_is_refused_by_name(back_end: Any, name: str) -> None:
    x = torch.randn(1, 2, 64, 16)
    given = {"segments": layout().segments, "masks": {}, "dropout": 0.0, "position_ids": torch.zeros(1, 64)}
    with pytest.raises(ValueError, match=f"attention has no '{name}' here"):
        back_end(SimpleNamespace(is_causal=True), x, x, x, None, **given, **{name: torch.ones(2)})


def test_varlen_attention_refuses_a_bound_that_it_cannot_compute() -> None:
    x = torch.randn(1, 2, 64, 16)
    with pytest.raises(ValueError, match="attention has no 'softcap' here"):
        varlen.varlen_attention(SimpleNamespace(), x, x, x, None, segments=None, softcap=50.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(("architecture", "change"), CHANGES, ids=str)
def test_a_property_of_attention_is_felt_by_the_parity_test(architecture: str, change: dict[str, Any]) -> None:
    """Else `test_parity.py` would pass without it."""
    fast = checkpoints.tokenizer_of(architecture)
    right, wrong = (checkpoints.classifier(architecture, fast, **more) for more in ({}, change))
    wrong.load_state_dict(right.state_dict())
    ids = [renderer_of(architecture, fast).render(item).sequence.ids for item in items()]
    assert max(abs(checkpoints.oracle(right, one) - checkpoints.oracle(wrong, one)) for one in ids) > 1e-3


@pytest.mark.usefixtures("kernels")
def test_bounded_scores_of_a_long_text_are_those_of_transformers(tmp_path: Path) -> None:
    """Longer than the blocks in which torch computes them, with windows and without."""
    fast = checkpoints.tokenizer_of("gemma2")
    size = {"max_position_embeddings": 2048, "sliding_window": 700}
    reference = checkpoints.classifier("gemma2", fast, **size)
    model = check_against_oracle("gemma2", reference, checkpoints.save(tmp_path, reference, fast))
    ids = tuple(torch.randint(8, 260, (1300,), generator=torch.Generator().manual_seed(0)).tolist())
    with torch.inference_mode():
        for boundary in (0, 600):
            logit = model.logits([TokenSequence(ids, boundary, Span(1299, 1300))], "s").item()
            assert logit == pytest.approx(checkpoints.oracle(reference, ids), abs=1e-5)
