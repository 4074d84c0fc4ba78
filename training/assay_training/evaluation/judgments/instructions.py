"""Instructions without a model's chat markup, and the groups that they belong to."""

import re
from collections.abc import Mapping
from pathlib import Path

from assay_training.records.record import RecordError
from assay_training.records.rows import Row, rows_of_list

_ROLE = r"(?:system|user|human|assistant|model)"
_MARKUP = (
    re.compile(r"<\|im_start\|>\s*system\b.*?<\|im_end\|>|<<SYS>>.*?<</SYS>>", re.DOTALL),  # not what is asked
    re.compile(rf"<\|(?:im_start|start_header_id)\|>\s*(?:{_ROLE}\b)?(?:<\|end_header_id\|>)?"),
    re.compile(rf"<(?:start|end)_of_turn>(?:{_ROLE}\b)?|</?s>|\[/?INST\]|<(?:bos|eos|PAD|SEP)>"),
    re.compile(r"<[|｜]/?[\w.▁|-]+[|｜]>"),
    re.compile(r"(?:^|\n)\s*(?:Human|Assistant|USER|ASSISTANT):|(?:^|\n)### (?:Instruction|Response):"),
)
_NO_GROUPS = frozenset({"instruction", "output", "output_1", "output_2", "generator", "generator_1", "generator_2"})
_SPACE = re.compile(r"\s+")


def plain(instruction: str) -> str:
    """An instruction as its key: control tokens and role marks taken out, white space made one space.

    The thesis' prompts carry ChatML, its judgments do not (seeds §9).
    """
    for mark in _MARKUP:
        instruction = mark.sub(" ", instruction)
    return _SPACE.sub(" ", instruction).strip()


def read_groups(path: Path) -> dict[str, tuple[str, ...]]:
    """The groups of each instruction, by its plain text.

    The file is a JSON list of objects with `instruction` and one text or several more, each a way of grouping
    (`dataset`, `category`); two make a third: both at once.

    Raises:
        RecordError: a row has no `instruction` or no group, or says otherwise than another row.
    """
    groups: dict[str, tuple[str, ...]] = {}
    for row in rows_of_list(path):
        key, found = plain(row.text("instruction")), _groups(row)
        if groups.setdefault(key, found) != found:
            raise row.error("field 'instruction' is there already, with other groups")
    return groups


def groups_of(instruction: str, groups: Mapping[str, tuple[str, ...]], where: str) -> tuple[str, ...]:
    """The groups of an instruction.

    Raises:
        RecordError: it has none.
    """
    key = plain(instruction)
    if key not in groups:
        raise RecordError(f"{where}: field 'instruction': the groups have no {key[:60]!r}")
    return groups[key]


def _groups(row: Row) -> tuple[str, ...]:
    names = {field: value for field, value in row.fields.items() if field not in _NO_GROUPS}
    if not names or not all(isinstance(value, str) and value for value in names.values()):
        raise row.error("the fields beside 'instruction' are not groups, one text or more")
    if len(set(names.values())) < len(names):  # one word in two fields
        names = {field: f"{field}={value}" for field, value in names.items()}
    return (*names.values(), " / ".join(names.values())) if len(names) > 1 else tuple(names.values())
