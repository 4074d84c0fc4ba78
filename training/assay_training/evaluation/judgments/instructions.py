"""Instructions without a model's chat markup, and the groups that they belong to."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from assay_training.evaluation import grouping
from assay_training.records.record import RecordError
from assay_training.records.rows import Row, json_of, rows_of_any

_TURNS = (  # what begins a turn of a ROLE in somebody's template, and what ends it
    (r"<\|im_start\|>\s*ROLE\s*?(?:\n|$)", r"<\|im_end\|>"),
    (r"<\|start_header_id\|>\s*ROLE\s*<\|end_header_id\|>", r"<\|eot_id\|>"),
    (r"<\|header_start\|>\s*ROLE\s*<\|header_end\|>", r"<\|eot\|>"),
    (r"<\|start_of_role\|>\s*ROLE\s*<\|end_of_role\|>", r"<\|end_of_text\|>"),
    (r"<\|start\|>ROLE(?:<\|channel\|>\w+)?(?:<\|message\|>|$)", r"<\|end\|>"),
    (r"<\|ROLE\|>", r"</s>|<\|end\|>"),
    (r"<start_of_turn>\s*ROLE\s*?(?:\n|$)", r"<end_of_turn>"),
)
_SYSTEM, _OTHERS = "(?:system|developer)", "(?:user|human|assistant|model|tool)"
_ASIDE = (  # what is told beside the instruction
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
_MARKUP = tuple(re.compile(mark, re.DOTALL) for mark in (*_ASIDE, *_SYSTEM_TURNS, *_BEGINNINGS, *_MARKS))
# What AlpacaEval's own files hold besides groups (alpaca_eval 0.6.6: outputs, annotations and their costs).
_NO_GROUPS = frozenset(
    {"instruction", "input", "id", "output", "output_1", "output_2", "generator", "generator_1", "generator_2"}
    | {"preference", "annotator", "raw_completion", "raw_completions", "referenced_models", "version", "date"}
)
_SPACE = re.compile(r"\s+")


def plain(instruction: str) -> str:
    """An instruction as its key: control tokens, role marks and system texts taken out, white space made one space.

    The thesis' prompts carry ChatML, its judgments do not ([CRS], the author's data).
    """
    for mark in _MARKUP:
        instruction = mark.sub(" ", instruction)
    return _SPACE.sub(" ", instruction).strip()


def read_groups(path: Path, by: Sequence[str] = ()) -> dict[str, tuple[str, ...]]:
    """Return the groups of each instruction, by its plain text.

    The file is a JSON list (or JSON lines) of objects with `instruction` and fields that are groups (`dataset`,
    `category`); all of them together are one more way of grouping. If some word is a group in two ways, every group is
    named with its way: `category=koala`. Or it is one object: the instructions, each with its group or a list of them.

    Args:
        path: of the file.
        by: the fields that are groups; none for all that hold short texts, one line of at most 80 characters, and are
            not among AlpacaEval's other fields.

    Raises:
        RecordError: a row is of another form, or says otherwise than another row; no row has a group.
    """
    whole = _whole(path)
    if whole is not None and by:
        raise RecordError(f"{path}: one object of instructions has no fields to group by; leave out --group-by")
    named = _of_rows(path, list(rows_of_any(path)), by) if whole is None else _of_object(path, whole)
    groups: dict[str, tuple[str, ...]] = {}
    for row, found in named:
        if groups.setdefault(plain(row.text("instruction")), found) != found:
            raise row.error("field 'instruction' is there already, with other groups")
    if not any(groups.values()):
        raise RecordError(f"{path}: no groups in it")
    return groups


def _whole(path: Path) -> dict[str, object] | None:
    """Return the object that a file is, `None` where it holds rows or is broken."""
    if ".jsonl" in path.suffixes:
        return None
    try:
        return json_of(path, dict)
    except RecordError:
        return None


def _of_object(path: Path, value: Mapping[str, object]) -> Iterator[tuple[Row, tuple[str, ...]]]:
    for instruction, of in value.items():
        row = Row(f"{path}: {instruction[:60]!r}", "", {"instruction": instruction})
        given = of if isinstance(of, list) else [] if of is None else [of]
        names = [name for name in given if isinstance(name, str) and name.strip()]
        if len(names) < len(given):
            raise row.error("its group is not a text, or a list of them")
        yield row, tuple(dict.fromkeys(names))


def _of_rows(path: Path, rows: Sequence[Row], by: Sequence[str]) -> Iterator[tuple[Row, tuple[str, ...]]]:
    for field in by:
        grouping.require(rows, field)
    ways = [{field: grouping.group(row, field) for field in by} for row in rows] if by else _short_texts(path, rows)
    yield from zip(rows, grouping.names(ways), strict=True)


def _short_texts(path: Path, rows: Sequence[Row]) -> list[dict[str, str]]:
    """Return every row's groups by field, for those fields whose values are all short texts or missing."""
    free: set[str] = set()
    ways: list[dict[str, str]] = []
    for row in rows:
        said = {field: value for field, value in row.fields.items() if not _is_no_group(field, value)}
        short = {field: value for field, value in said.items() if grouping.is_short(value)}
        free |= said.keys() - short.keys()
        ways.append(short)
    if free and not any(way.keys() - free for way in ways):
        told = ", ".join(sorted(free))
        raise RecordError(
            f"{path}: no groups in it: a group is one line of at most {grouping.LONGEST} characters, which {told} "
            "is not in every row; name a field by --group-by"
        )
    return [{field: word for field, word in way.items() if field not in free} for way in ways]


def _is_no_group(field: str, value: object) -> bool:
    """Return whether a value is missing, a number or an id, or its field is known to hold something else."""
    known = field in _NO_GROUPS or field.endswith(("_id", "_per_example"))
    return known or isinstance(value, int | float) or grouping.missing(value)
