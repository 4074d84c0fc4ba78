"""Decide which part of a checkpoint's head one signal reads, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from assay_service.errors import StartError
from assay_service.scoring.manifest import Manifest

OutputKey = int | str | tuple[int, int]


@dataclass(frozen=True, slots=True)
class HeadRule:
    """The part of a checkpoint's head that one signal reads.

    Attributes:
        outputs: index of the output; or two indices, whose difference is the logit. The softmax of two logits is the
            sigmoid of their difference. Empty for a head with one output.
        tokens: one or two tokens, as text or id: the rows of a language model's output layer that are read in the same
            way. Empty for a head of its own.
    """

    outputs: tuple[int, ...] = ()
    tokens: tuple[str | int, ...] = ()


def decide_output(output: OutputKey | None, claims: Manifest, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the outputs that a signal reads: none for the only one, one, or two whose difference is the logit.

    Args:
        output: declared number, name or pair of numbers; None if none is declared.
        claims: manifest of the checkpoint, which may name its outputs.
        config: `config.json` of the base, whose `id2label` may name them.

    Raises:
        StartError: the checkpoint has no output of that name, or has several and none is declared.
    """
    named = {o.name: row for row, o in enumerate(claims.outputs)}
    labels = config.get("id2label")
    if not named and isinstance(labels, dict):
        named = {str(label): int(row) for row, label in labels.items() if str(row).isdigit()}
    if isinstance(output, str):
        if output not in named:
            known = ", ".join(named) or "without names; declare a number"
            raise StartError(f"output: {output!r} is not an output of this checkpoint; its outputs are {known}")
        return (named[output],)
    if output is None and claims.outputs:
        raise StartError(f"output: declare it, one of {', '.join(named)}: the checkpoint has several outputs")
    if output is None:
        return ()
    return (output,) if isinstance(output, int) else output


def select_claims(claims: Manifest, outputs: tuple[int, ...]) -> Manifest:
    """Return the manifest with kind, moments and golden rows of the output that a signal reads.

    Raises:
        StartError: the manifest records no such output.
    """
    if not claims.outputs:
        return claims
    if len(outputs) != 1 or outputs[0] >= len(claims.outputs):
        raise StartError(
            f"output: must be one of {', '.join(o.name for o in claims.outputs)}, as the manifest records them"
        )
    own = claims.outputs[outputs[0]]
    return claims.model_copy(update={"kind": own.kind, "mean": own.mean, "std": own.std, "golden": own.golden})
