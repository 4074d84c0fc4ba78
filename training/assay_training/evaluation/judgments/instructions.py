"""Instructions without a model's chat markup, and the groups that they belong to."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from assay_training.records.record import RecordError
from assay_training.records.rows import Row, json_of, rows_of_any

_ROLE = r"(?:system|user|human|assistant|model)"
_MARKUP = (
    re.compile(r"<\|im_start\|>\s*system\b.*?<\|im_end\|>|<<SYS>>.*?<</SYS>>", re.DOTALL),  # not what is asked
    re.compile(rf"<\|(?:im_start|start_header_id)\|>\s*(?:{_ROLE}\b)?(?:<\|end_header_id\|>)?"),
    re.compile(rf"<(?:start|end)_of_turn>(?:{_ROLE}\b)?|</?s>|\[/?INST\]|<(?:bos|eos|PAD|SEP)>"),
    re.compile(r"<[|｜]/?[\w.▁|-]+[|｜]>"),
    re.compile(r"(?:^|\n)\s*(?:Human|Assistant|USER|ASSISTANT):|(?:^|\n)### (?:Instruction|Response):"),
)
_NO_GROUPS = frozenset(
    {"instruction", "id", "output", "output_1", "output_2", "generator", "generator_1", "generator_2"}
)
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

    The file is a JSON list (or JSON lines) of objects with `instruction` and one text or several more, each a way of
    grouping (`dataset`, `category`); all of them together are one more way. What is null, empty, a number or an id is
    no group. If some word is a group in two ways, every group is named with its way: `category=koala`. Or it is one
    object: the instructions, each with its group or a list of them.

    Raises:
        RecordError: a row is of another form, or says otherwise than another row; no row has a group.
    """
    value = json_of(path, object) if ".jsonl" not in path.suffixes else []
    named = _of_object(path, value) if isinstance(value, dict) else _of_rows(rows_of_any(path))
    groups: dict[str, tuple[str, ...]] = {}
    for row, found in named:
        if groups.setdefault(plain(row.text("instruction")), found) != found:
            raise row.error("field 'instruction' is there already, with other groups")
    if not any(groups.values()):
        raise RecordError(f"{path}: no groups in it")
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


def _of_object(path: Path, value: Mapping[str, object]) -> Iterator[tuple[Row, tuple[str, ...]]]:
    for instruction, of in value.items():
        row = Row(f"{path}: {instruction[:60]!r}", "", {"instruction": instruction})
        names = of if isinstance(of, list) else [] if of is None else [of]
        if not all(isinstance(name, str) and name.strip() for name in names):
            raise row.error("its group is not a text, or a list of them")
        yield row, tuple(dict.fromkeys(names))


def _of_rows(rows: Iterable[Row]) -> Iterator[tuple[Row, tuple[str, ...]]]:
    read = [(row, _ways(row)) for row in rows]
    ways = {way for _, names in read for way in names}
    words = Counter(word for _, word in {pair for _, names in read for pair in names.items()})
    shared = any(count > 1 for count in words.values())
    for row, names in read:
        named = [f"{way}={word}" if shared else word for way, word in names.items()]
        yield row, (*named, *([" / ".join(named)] if len(named) == len(ways) > 1 else []))


def _ways(row: Row) -> dict[str, str]:
    """A row's groups by the field that names them."""
    names = {}
    for field, value in row.fields.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if field in _NO_GROUPS or field.endswith("_id") or number or value is None or value == "":
            continue
        if not isinstance(value, str):
            raise row.error(f"field {field!r} is no group, which is a text")
        names[field] = value
    return names
