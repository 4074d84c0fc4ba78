"""Check that a base has every tensor that its architecture needs, and none that would be lost."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assay_service.errors import StartError
from assay_service.scoring import names

# Tensors of a checkpoint that a bare base does not use: heads, language-model outputs, buffers of old versions.
_UNUSED = (
    *(f"{module}." for module in names.HEAD_MODULES),
    *("lm_head.", "embed_out.", "cls.", "pooler.", "lm_predictions.", "mask_predictions."),
    *("embeddings.position_ids", "rotary_emb.inv_freq", "attention.bias", "attention.masked_bias"),
)


def check_report(
    report: Mapping[str, Any], directory: Path, prefix: str, tensors: names.Shapes, head: str | None
) -> None:
    """Refuse a base of which transformers reports tensors that are missing, unknown or of the wrong shape.

    Args:
        report: transformers' own, of loading.
        directory: of the base.
        prefix: what transformers puts in front of the base's names.
        tensors: shapes of all tensors in the files.
        head: one more module that is a head, as `config.json` says.
    """
    missing = sorted(report["missing_keys"])
    if missing:
        raise StartError(
            f"{directory}: tensor {missing[0]} is missing, so it would be random ({len(missing)} missing)"
            f"{names.why_missing(missing[0].removeprefix(prefix), tensors)}"
        )
    mismatched = sorted(str(entry) for entry in report["mismatched_keys"])
    if mismatched:
        raise StartError(f"{directory}: tensor of the wrong shape: {mismatched[0]}")
    unused = (*_UNUSED, *([f"{head}."] if head else []))
    unexpected = (names.unwrapped(name).removeprefix(prefix) for name in report["unexpected_keys"])
    unknown = sorted(name for name in unexpected if not name.startswith(unused) and not name.endswith(_UNUSED))
    if unknown:
        raise StartError(
            f"{directory}: tensor {unknown[0]} has no place in the architecture ({len(unknown)} unknown)"
            f"{names.why_unknown(unknown[0])}"
        )
