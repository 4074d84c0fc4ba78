"""Strip chat markup from instructions, and read the groups that instructions belong to."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from assay_training.evaluation import grouping
from assay_training.records.record import RecordError
from assay_training.records.rows import Row, read_file_rows, read_json_value

_TURNS = (  # beginning and end of a turn of a ROLE in common chat templates
    (r"<\|im_start\|>\s*ROLE\s*?(?:\n|$)", r"<\|im_end\|>"),
    (r"<\|start_header_id\|>\s*ROLE\s*<\|end_header_id\|>", r"<\|eot_id\|>"),
    (r"<\|header_start\|>\s*ROLE\s*<\|header_end\|>", r"<\|eot\|>"),
    (r"<\|start_of_role\|>\s*ROLE\s*<\|end_of_role\|>", r"<\|end_of_text\|>"),
    (r"<\|start\|>ROLE(?:<\|channel\|>\w+)?(?:<\|message\|>|$)", r"<\|end\|>"),
    (r"<\|ROLE\|>", r"</s>|<\|end\|>"),
    (r"<start_of_turn>\s*ROLE\s*?(?:\n|$)", r"<end_of_turn>"),
)
_SYSTEM, _OTHERS = "(?:system|developer)", "(?:user|human|assistant|model|tool)"
_SYSTEM_TEXTS = (  # fixed or system texts that templates put before the instruction
    r"<<SYS>>.*?<</SYS>>|\[SYSTEM_PROMPT\].*?\[/SYSTEM_PROMPT\]",
    r"^\s*### System:.*?(?=### (?:User|Human|Instruction):)",
    r"^\s*Below is an instruction that describes a task.*?(?=### Instruction:)",
    r"^\s*A chat between a curious (?:user|human) and an artificial intelligence assistant.*?(?=USER:|### Human:)",
)
_MARKS = (
    r"###\s*(?:Instruction|Input|Response|User|Human|Assistant):",
    r"(?:^|\n|</s>)\s*(?:Human|Assistant|USER|ASSISTANT):|\sASSISTANT:\s*$",
    r"<(?:start|end)_of_turn>|</?s>|\[/?INST\]|<(?:bos|eos|PAD|SEP)>|<[|｜]/?[\w.▁|-]+[|｜]>",
)
_SYSTEM_TURNS = (
    f"{begin.replace('ROLE', _SYSTEM)}.*?(?:{end}|(?={begin.replace('ROLE', _OTHERS)}))" for begin, end in _TURNS
)
_BEGINNINGS = (begin.replace("ROLE", f"(?:{_SYSTEM}|{_OTHERS})") for begin, _ in _TURNS)
# The order matters: system turns are removed as a whole before the marks by which they are recognized.
_MARKUP = tuple(re.compile(mark, re.DOTALL) for mark in (*_SYSTEM_TEXTS, *_SYSTEM_TURNS, *_BEGINNINGS, *_MARKS))
# Fields of AlpacaEval's own files that are not groups (alpaca_eval 0.6.6: outputs, annotations and their costs).
_NOT_GROUPS = frozenset(
    {"instruction", "input", "id", "output", "output_1", "output_2", "generator", "generator_1", "generator_2"}
    | {"preference", "annotator", "raw_completion", "raw_completions", "referenced_models", "version", "date"}
)
_SPACE = re.compile(r"\s+")


def strip_markup(instruction: str) -> str:
    """Return an instruction without control tokens, role marks and system texts, with white space as single spaces.

    The result is the key by which verdicts and groups are matched. Files about the same instructions differ in markup:
    the prompts of [CRS] are in ChatML, its judgments are not.
    """
    for pattern in _MARKUP:
        instruction = pattern.sub(" ", instruction)
    return _SPACE.sub(" ", instruction).strip()


def read_groups(path: Path, by: Sequence[str] = ()) -> dict[str, tuple[str, ...]]:
    """Return the names of the groups of each instruction, by the instruction without markup.

    The file is a JSON list (or JSON lines) of objects with `instruction` and fields that are groups (`dataset`,
    `category`). The combination of all these fields is a group too. If two fields share a value, every group is named
    with its field: `category=koala`. The file may also be one JSON object: instructions, each with its group or a list
    of groups.

    Args:
        path: file of groups.
        by: fields that are groups. If empty, these are all fields whose values are one line of at most 80 characters,
            without numbers, ids and AlpacaEval's other fields.

    Raises:
        RecordError: a row is malformed, two rows give an instruction different groups, or no row has a group.
    """
    whole = _read_object(path)
    if whole is not None and by:
        raise RecordError(
            f"{path}: the file is one object of instructions, without fields to group by; omit --group-by"
        )
    named = (
        _name_row_groups(path, list(read_file_rows(path)), by) if whole is None else _read_object_groups(path, whole)
    )
    groups: dict[str, tuple[str, ...]] = {}
    for row, names in named:
        if groups.setdefault(strip_markup(row.text("instruction")), names) != names:
            raise row.error("field 'instruction' repeats an instruction with other groups; keep one of the two rows")
    if not any(groups.values()):
        raise RecordError(f"{path}: the file has no groups")
    return groups


def _read_object(path: Path) -> dict[str, object] | None:
    """Return the content of a file that is one JSON object, or `None` if it has rows or is malformed."""
    if ".jsonl" in path.suffixes:
        return None
    try:
        return read_json_value(path, dict)
    except RecordError:
        return None  # reading its rows raises an error that names the place


def _read_object_groups(path: Path, value: Mapping[str, object]) -> Iterator[tuple[Row, tuple[str, ...]]]:
    """Yield each instruction of an object as a row, with the names of its groups."""
    for instruction, content in value.items():
        row = Row(f"{path}: {instruction[:60]!r}", "", {"instruction": instruction})
        given = content if isinstance(content, list) else [] if content is None else [content]
        names = [name for name in given if isinstance(name, str) and name.strip()]
        if len(names) < len(given):
            raise row.error("its group must be a text, or a list of texts")
        yield row, tuple(dict.fromkeys(names))


def _name_row_groups(path: Path, rows: Sequence[Row], by: Sequence[str]) -> Iterator[tuple[Row, tuple[str, ...]]]:
    """Yield each row with the names of its groups."""
    for field in by:
        grouping.check_field(rows, field)
    if by:
        by_field = [{field: grouping.read_group(row, field) for field in by} for row in rows]
    else:
        by_field = _select_short_texts(path, rows)
    yield from zip(rows, grouping.name_groups(by_field), strict=True)


def _select_short_texts(path: Path, rows: Sequence[Row]) -> list[dict[str, str]]:
    """Return every row's groups by field, for the fields whose values in all rows are short texts or missing."""
    free_text: set[str] = set()
    by_row: list[dict[str, str]] = []
    for row in rows:
        given = {field: value for field, value in row.fields.items() if not _cannot_be_group(field, value)}
        short = {field: value for field, value in given.items() if grouping.is_short(value)}
        free_text |= given.keys() - short.keys()
        by_row.append(short)
    if free_text and not any(groups.keys() - free_text for groups in by_row):
        raise RecordError(
            f"{path}: the file has no groups: a group is one line of at most {grouping.LONGEST} characters, and these "
            f"fields hold something else in some rows: {', '.join(sorted(free_text))}; name a field with --group-by"
        )
    return [{field: value for field, value in groups.items() if field not in free_text} for groups in by_row]


def _cannot_be_group(field: str, value: object) -> bool:
    """Return whether a value is missing, a number or an id, or its field is known to hold something else."""
    known = field in _NOT_GROUPS or field.endswith(("_id", "_per_example"))
    return known or isinstance(value, int | float) or grouping.is_missing(value)
