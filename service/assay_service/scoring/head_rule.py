"""Decide which part of a checkpoint's head one signal reads, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from assay_service.advice import get_advice
from assay_service.errors import StartError
from assay_service.scoring.head_layouts import HeadLayout
from assay_service.scoring.manifest import Kind, Manifest, ScorePosition
from assay_service.scoring.reading import Likelihood

OutputKey = int | str | tuple[int, int]


@dataclass(frozen=True, slots=True)
class HeadRule:
    """The part of a checkpoint's head that one signal reads.

    Attributes:
        outputs: index of the output; or two indices, whose difference is the logit. The softmax of two logits is the
            sigmoid of their difference. Empty for a head with one output.
        tokens: one or two tokens, as text or id: the rows of a language model's output layer that are read in the same
            way. Empty for a head of its own.
        likelihood: whether the log-probability of the completion is summed over its tokens or averaged; None for any
            other head.
        layout: parts of a head with a gating network; None for any other head. One output is then one objective, and
            without one the weighted sum of all is read.
    """

    outputs: tuple[int, ...] = ()
    tokens: tuple[str | int, ...] = ()
    likelihood: Likelihood | None = None
    layout: HeadLayout | None = None

    @property
    def objective(self) -> int | None:
        """Return the objective that is read of a head with a gating network; None for the weighted sum of all."""
        return self.outputs[0] if self.outputs else None

    @property
    def has_std(self) -> bool:
        """Return whether the head gives a standard deviation after each logit."""
        return self.layout is not None and self.layout.has_std(self.objective)


def check_head(rule: HeadRule, position: ScorePosition, kind: Kind | None, engine: str, *, is_classifier: bool) -> None:
    """Refuse what a likelihood, or a head with a gating network, cannot be read with.

    Args:
        rule: part of the head that the signal reads.
        position: score position of the signal.
        kind: declared or claimed meaning of the logit; None if it is not known.
        engine: engine of the forward pass.
        is_classifier: whether the checkpoint was trained as a classifier.

    Raises:
        StartError: the checkpoint has no such head, or a key does not fit to it.
    """
    if rule.likelihood is not None:
        _check_likelihood(position, kind, is_classifier=is_classifier)
    elif position == "completion_tokens":
        raise StartError(
            "score_position: completion_tokens is only for `head: {likelihood: sum}` or `mean`; declare that head, or "
            "another position"
        )
    if rule.layout is not None:
        _check_network(rule, rule.layout, position, engine)


def _check_likelihood(position: ScorePosition, kind: Kind | None, *, is_classifier: bool) -> None:
    if is_classifier:
        raise StartError(
            "head.likelihood: is for causal language models, and this checkpoint was trained as a classifier; remove "
            "`head`, or declare the language model as `base`"
        )
    if position != "completion_tokens":
        raise StartError(
            f"score_position: must be completion_tokens with `head.likelihood`, not {position}: the probability of a "
            "completion is read at all of its tokens"
        )
    if kind == "absolute":
        raise StartError(
            "kind: must be preference with `head.likelihood`: the sigmoid of a log-probability is not a quality"
        )


def _check_network(rule: HeadRule, layout: HeadLayout, position: ScorePosition, engine: str) -> None:
    if len(rule.outputs) > 1:
        raise StartError("output: a difference is only for linear heads; declare one objective, or none for the score")
    if rule.objective is not None and rule.objective >= layout.objectives:
        raise StartError(
            f"output: {rule.objective} is not an objective of this head; declare one of 0 to {layout.objectives - 1}"
        )
    if position in ("steps", "pooler", "mean_pooler"):
        raise StartError(
            f"score_position: {position} does not work with a head that has a gating network; declare the token that "
            "it reads, as `last_token`"
        )
    if engine == "vllm":
        raise StartError("engine: vllm serves linear heads only, and this head has a gating network; remove the key")


def decide_gate(declared: str | None, layout: HeadLayout | None) -> str | None:
    """Return the text at which the gate of a head reads the prompt; None for a head without such a gate.

    Raises:
        StartError: the text is missing, or the head has no such gate.
    """
    needed = layout is not None and layout.reads_prompt
    if needed and declared is None:
        assert layout is not None  # `needed` says so
        raise StartError(
            f"head: declare it, as `head: {{gate: TEXT}}`: {layout.gate.layers[0]}.weight is a gate that reads the end "
            f"of the prompt: {get_advice('head')}"
        )
    if declared is not None and not needed:
        raise StartError("head.gate: the checkpoint has no gate that reads the prompt; remove the key")
    return declared


def decide_output(output: OutputKey | None, claims: Manifest, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the outputs that a signal reads: none for the only one, one, or two whose difference is the logit.

    Args:
        output: declared number, name or pair of numbers; None if none is declared.
        claims: manifest of the checkpoint, which may name its outputs.
        config: `config.json` of the base, whose `id2label` may name them.

    Raises:
        StartError: no output or more than one has that name, or there are several and none is declared.
    """
    if isinstance(output, str):
        return (_find_named(output, claims, config),)
    if output is None and claims.outputs:
        names = ", ".join(o.name for o in claims.outputs)
        raise StartError(f"output: declare it, one of {names}: the checkpoint has several outputs")
    if output is None:
        return ()
    return (output,) if isinstance(output, int) else output


def _find_named(name: str, claims: Manifest, config: Mapping[str, Any]) -> int:
    """Return the index of the output called `name`.

    Raises:
        StartError: no output has the name, or several have it.
    """
    named = [(o.name, row) for row, o in enumerate(claims.outputs)]
    labels = config.get("id2label")
    if not named and isinstance(labels, dict):
        named = [(str(label), int(row)) for row, label in labels.items() if str(row).isdigit()]
    rows = sorted({row for label, row in named if label == name})
    if not rows:
        known = ", ".join(dict(named)) or "they have no names, but numbers"
        raise StartError(f"output: {name!r} is not an output of this checkpoint; declare one of its outputs: {known}")
    if len(rows) > 1:
        numbers = " and ".join(map(str, rows))
        raise StartError(f"output: {name!r} is the name of several outputs; declare the number of one: {numbers}")
    return rows[0]


def select_claims(claims: Manifest, outputs: tuple[int, ...]) -> Manifest:
    """Return the manifest with kind, moments, golden rows and reference of the output that a signal reads.

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
    named = ("kind", "mean", "std", "golden", "reference")
    return claims.model_copy(update={key: getattr(own, key) for key in named})
