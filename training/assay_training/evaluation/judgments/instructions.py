"""Instructions without a model's chat markup, and the groups that they belong to."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

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
_NO_GROUPS = frozenset(
    {"instruction", "id", "output", "output_1", "output_2", "generator", "generator_1", "generator_2"}
)
_SPACE = re.compile(r"\s+")


def plain(instruction: str) -> str:
    """An instruction as its key: control tokens, role marks and system texts taken out, white space made one space.

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
        given = of if isinstance(of, list) else [] if of is None else [of]
        names = [name for name in given if isinstance(name, str) and name.strip()]
        if len(names) < len(given):
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
