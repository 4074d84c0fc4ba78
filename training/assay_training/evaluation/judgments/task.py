"""A ranking task for people: responses without their models' names, and apart from them a file that knows the names."""

import hashlib
from collections.abc import Sequence
from typing import Any

from assay_training.evaluation.judgments.ballots import FORMAT, KEY_FORMAT
from assay_training.evaluation.judgments.verdicts import Contest
from assay_training.records.record import RecordError


def export(contests: Sequence[Contest]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every instruction with one response of each model, in an order that follows from a hash; and the key.

    Raises:
        RecordError: a model has two different responses to an instruction.
    """
    responses: dict[str, dict[str, str]] = {}
    for contest in contests:
        known = responses.setdefault(contest.instruction, {})
        for model, output in zip((contest.first, contest.second), contest.outputs, strict=True):
            if known.setdefault(model, output) != output:
                raise RecordError(f"{contest.where}: {model!r} has another response to this instruction elsewhere")
    task: list[dict[str, Any]] = []
    key: list[dict[str, Any]] = []
    for instruction, of in responses.items():
        shown = sorted(
            of, key=lambda model: hashlib.sha256("\0".join((instruction, of[model], model)).encode()).digest()
        )
        names = [f"response-{number}" for number in range(1, len(shown) + 1)]
        texts = {name: of[model] for name, model in zip(names, shown, strict=True)}
        task.append({"prompt": instruction, "responses": texts, "ballots": []})
        key.append({"prompt": instruction, "models": dict(zip(names, shown, strict=True))})
    return {"format": FORMAT, "prompts": task}, {"format": KEY_FORMAT, "prompts": key}
