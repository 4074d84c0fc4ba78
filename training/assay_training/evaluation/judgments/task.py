"""Build a ranking task for people: completions without the models' names, and a separate key with the names."""

import hashlib
from collections.abc import Sequence
from typing import Any

from assay_training.evaluation.judgments.ballots import FORMAT, KEY_FORMAT
from assay_training.evaluation.judgments.verdicts import OutputPair
from assay_training.records.record import RecordError


def build_task(pairs: Sequence[OutputPair]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Build the task and its key, both as JSON objects in the formats of `ballots`.

    Each instruction gets one completion of each model. Their order follows from a hash of the texts, so that it is the
    same in every run and favors no model.

    Args:
        pairs: pairs of outputs; a model's output to an instruction may occur in several of them.

    Returns:
        The task, with an empty list of ballots for each prompt, and the key.

    Raises:
        RecordError: a model has two different outputs to an instruction.
    """
    outputs: dict[str, dict[str, str]] = {}
    for pair in pairs:
        known = outputs.setdefault(pair.instruction, {})
        for model, output in zip((pair.first, pair.second), pair.outputs, strict=True):
            if known.setdefault(model, output) != output:
                raise RecordError(
                    f"{pair.where}: another row has a different output of {model!r} to this instruction; "
                    "keep one output for each model and instruction"
                )
    task: list[dict[str, Any]] = []
    key: list[dict[str, Any]] = []
    for instruction, by_model in outputs.items():
        models = sorted(by_model, key=lambda model: _hash_output(instruction, by_model[model], model))
        names = [f"response-{number}" for number in range(1, len(models) + 1)]
        texts = {name: by_model[model] for name, model in zip(names, models, strict=True)}
        task.append({"prompt": instruction, "responses": texts, "ballots": []})
        key.append({"prompt": instruction, "models": dict(zip(names, models, strict=True))})
    return {"format": FORMAT, "prompts": task}, {"format": KEY_FORMAT, "prompts": key}


def _hash_output(instruction: str, output: str, model: str) -> bytes:
    # The model's name comes last: it decides the order only between two equal outputs.
    return hashlib.sha256("\0".join((instruction, output, model)).encode()).digest()
