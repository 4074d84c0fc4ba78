"""Instruction sets: an instruction and its answer, as one dialogue of two turns."""

import re
from collections.abc import Iterable, Iterator

from assay_service.scoring.item import Message
from assay_training.records.record import Dialogue, LeftOut, group_of
from assay_training.records.rows import Row

_CALCULATION = re.compile(r"<<[^<>]*>>")


def alpaca(source: str, rows: Iterable[Row]) -> Iterator[Dialogue | LeftOut]:
    """Alpaca: `instruction`, perhaps `input`, which follows it after an empty line, and `output`."""
    for row in rows:
        instruction, given = row.get("instruction", str), row.fields.get("input") or ""
        if not isinstance(given, str):
            raise row.error("field 'input' is not a str")
        yield _dialogue(source, f"{instruction}\n\n{given}" if given else instruction, row.get("output", str))


def dolly(source: str, rows: Iterable[Row]) -> Iterator[Dialogue | LeftOut]:
    """Dolly: `instruction` and `response`; the context column is ignored (thesis 5.1)."""
    for row in rows:
        yield _dialogue(source, row.get("instruction", str), row.get("response", str))


def gsm8k(source: str, rows: Iterable[Row]) -> Iterator[Dialogue | LeftOut]:
    """GSM8K: `question` and `answer`, whose calculator marks (`<<2*3=6>>`) are taken out.

    The file of models' solutions in the same folder has no `answer`, and is left out.
    """
    for row in rows:
        if "ground_truth" not in row.fields:
            yield _dialogue(source, row.get("question", str), _CALCULATION.sub("", row.get("answer", str)))


def _dialogue(source: str, instruction: str, answer: str) -> Dialogue | LeftOut:
    if not answer.strip():
        return LeftOut("empty answer")
    return Dialogue(source, group_of(instruction), (Message("user", instruction), Message("assistant", answer)))
