"""Explain why no head of a checkpoint is served, by the names and shapes of its tensors, without torch."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from assay_service.scoring.language_models import is_language_model
from assay_service.scoring.names import HEAD_MODULES, UNSERVED_HEADS, Shapes


def why_no_head(shapes: Shapes, config: Mapping[str, Any], directory: Path | None = None) -> str:
    """Explain why a checkpoint has no head that Assay serves, and how to declare or convert it.

    Args:
        shapes: shapes of all its tensors, keyed by name.
        config: `config.json` of its base.
        directory: directory of the checkpoint, which may hold the head as pickles.
    """
    pickles = [] if directory is None else sorted(path.name for path in directory.glob("*_layer.pt"))
    if pickles:
        listed = ", ".join(pickles)
        return f"the head is in pickles ({listed}), which are not read: convert it by `assay convert {directory} OUT`"
    looked = f"no head was found; looked for {', '.join(f'{module}.weight' for module in HEAD_MODULES)}"
    if odd := explain_odd_head(shapes):
        return f"{looked}; {odd}" if odd.startswith("tensor ") else odd
    if is_language_model(shapes, config):
        return (
            f"{looked}; this is a language model. If its reward is the logit of a token, declare "
            "`head: {tokens: [TOKEN]}`; if it is the base of a LoRA reward model, declare its `adapter`; to score "
            "without a trained head, declare `head: {likelihood: sum}`"
        )
    return f"{looked}; if this is the base of a LoRA reward model, declare the `adapter` that has the head"


def explain_several(heads: Iterable[str]) -> str:
    """Explain that a checkpoint has several heads, by the names of their weights."""
    return (
        f"there are several heads: {', '.join(sorted(heads))}; a signal has only one. "
        "Save the checkpoint with the head that was trained"
    )


def explain_odd_head(shapes: Shapes) -> str:
    """Explain a head that is there, but is not served or has an unknown name; "" if there is none.

    Args:
        shapes: shapes of all tensors of a checkpoint, keyed by name.
    """
    for pattern, kind in UNSERVED_HEADS:
        layers = sorted({name.rpartition(".")[0] for name in shapes if pattern.match(name)})
        if layers:
            return (
                f"{kind.format(names=', '.join(layers[:4]))}: not served; declare a checkpoint whose head is one "
                "linear layer, or two with a ReLU between"
            )
    one_row = sorted(name for name, shape in shapes.items() if len(shape) == 2 and shape[0] == 1 and _is_top(name))
    if one_row:
        return f"tensor {one_row[0]} has one output: if that is the head, rename it to score.weight in the file"
    return ""


def _is_top(name: str) -> bool:
    """Return whether a weight lies outside of the base's layers, as heads do."""
    return name.endswith(".weight") and not re.search(r"\.\d+\.|embed", name)
