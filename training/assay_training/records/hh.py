r"""Read HH dialogues ([HH]): `chosen` and `rejected`, each `\n\nHuman: … \n\nAssistant: …`."""

from collections.abc import Iterable, Iterator

from assay_service.scoring.item import Message
from assay_training.records.record import Dialogue, Dropped, Pair, Ranking, find_group
from assay_training.records.rows import Row
from assay_training.records.turns import split_turns


def parse_dialogue(row: Row, field: str) -> tuple[Message, ...]:
    """Parse the HH dialogue in a field of a row into messages.

    Raises:
        RecordError: the field is missing, or text precedes the first turn.
    """
    first, turns = split_turns(row.get(field, str))
    if first:
        raise row.error(f"field {field!r} does not begin with a turn, but with {first[:40]!r}")
    return turns


def read_rankings(source: str, rows: Iterable[Row]) -> Iterator[Ranking | Dropped]:
    """Yield a pair per row, and drop rows whose earlier turns differ or whose last completions are equal.

    Of the published test rows, 63 are dropped.

    Raises:
        RecordError: a row is malformed.
    """
    for row in rows:
        chosen, rejected = parse_dialogue(row, "chosen"), parse_dialogue(row, "rejected")
        fault = _find_fault(chosen) or _find_fault(rejected)
        if fault is None and chosen[:-1] != rejected[:-1]:
            fault = "earlier turns differ"
        if fault is None and chosen == rejected:
            fault = "completions are equal"
        if fault is not None:
            yield Dropped(fault)
            continue
        # The group is the first human turn: dialogues that begin alike must be in the same part.
        texts = (chosen[-1].content, rejected[-1].content)
        yield Ranking(f"{source}/{row.subset}", find_group(chosen[0].content), chosen[:-1], texts, (Pair(0, 1),))


def read_dialogues(source: str, rows: Iterable[Row]) -> Iterator[Dialogue | Dropped]:
    """Yield the chosen dialogues that end with the assistant; others are dropped.

    Raises:
        RecordError: a row is malformed.
    """
    for row in rows:
        chosen = parse_dialogue(row, "chosen")
        fault = _find_fault(chosen)
        if fault is not None:
            yield Dropped(fault)
            continue
        yield Dialogue(f"{source}/{row.subset}", find_group(chosen[0].content), chosen)


def _find_fault(turns: tuple[Message, ...]) -> str | None:
    if not turns or turns[-1].role != "assistant":
        return "does not end with the assistant"
    return None if turns[-1].content else "empty completion"
