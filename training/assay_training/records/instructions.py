"""Read instruction sets: an instruction and its completion become a dialogue of two turns."""

import re
from collections.abc import Iterable, Iterator

from assay_service.scoring.item import Message
from assay_training.records.record import Dialogue, Dropped, find_group
from assay_training.records.rows import Row

_CALCULATION = re.compile(r"<<[^<>]*>>")


def read_alpaca(source: str, rows: Iterable[Row]) -> Iterator[Dialogue | Dropped]:
    """Read Alpaca: `instruction` and `output`; an `input` follows the instruction after an empty line.

    Raises:
        RecordError: a field is missing or is not a text.
    """
    for row in rows:
        instruction, given = row.get("instruction", str), row.fields.get("input") or ""
        if not isinstance(given, str):
            raise row.error("field 'input' is not a str")
        yield _build_dialogue(source, f"{instruction}\n\n{given}" if given else instruction, row.get("output", str))


def read_dolly(source: str, rows: Iterable[Row]) -> Iterator[Dialogue | Dropped]:
    """Read Dolly: `instruction` and `response`; the column `context` is ignored ([CRS] section 5.1).

    Raises:
        RecordError: a field is missing or is not a text.
    """
    for row in rows:
        yield _build_dialogue(source, row.get("instruction", str), row.get("response", str))


def read_gsm8k(source: str, rows: Iterable[Row]) -> Iterator[Dialogue | Dropped]:
    """Read GSM8K: `question` and `answer`, without the calculator annotations of the answer (`<<2*3=6>>`).

    The file of models' solutions in the same folder has no `answer`; its rows are skipped.

    Raises:
        RecordError: a field is missing or is not a text.
    """
    for row in rows:
        # Only the rows of the file of models' solutions have this field.
        if "ground_truth" not in row.fields:
            yield _build_dialogue(source, row.get("question", str), _CALCULATION.sub("", row.get("answer", str)))


def _build_dialogue(source: str, instruction: str, answer: str) -> Dialogue | Dropped:
    if not answer.strip():
        return Dropped("empty completion")
    return Dialogue(source, find_group(instruction), (Message("user", instruction), Message("assistant", answer)))
