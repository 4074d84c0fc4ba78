"""Read QA-Feedback: four completions of a question, all six pairs of which were compared by annotators."""

from collections.abc import Iterable, Iterator
from itertools import combinations

from assay_service.scoring.item import Message
from assay_training.records.record import Dropped, Pair, Ranking, drop_equal_pairs, find_group
from assay_training.records.rows import Row

_ANSWERS = 4
_COMPARED = tuple(combinations(range(_ANSWERS), 2))  # the order of the field: 1v2, 1v3, 1v4, 2v3, 2v4, 3v4


def read_rankings(source: str, rows: Iterable[Row]) -> Iterator[Ranking | Dropped]:
    """Yield a ranking per question; a comparison is 1 or 2 for the better completion, 0 for a tie.

    Rows with an empty completion are dropped.

    Raises:
        RecordError: a row is malformed.
    """
    for row in rows:
        verdicts = row.get("preference", list)
        if len(verdicts) != len(_COMPARED) or any(verdict not in (0, 1, 2) for verdict in verdicts):
            raise row.error(f"field 'preference' is not a list of {len(_COMPARED)} numbers 0, 1 or 2")
        judged = list(zip(_COMPARED, verdicts, strict=True))
        pairs = tuple(Pair(i, j) if verdict == 1 else Pair(j, i) for (i, j), verdict in judged if verdict)
        ties = tuple(compared for compared, verdict in judged if not verdict)
        question = row.get("question", str)
        texts = tuple(row.get(f"prediction {number}", str) for number in range(1, _ANSWERS + 1))
        if not all(text.strip() for text in texts):
            yield Dropped("empty completion")
            continue
        yield from drop_equal_pairs(
            Ranking(source, find_group(question), (Message("user", question),), texts, pairs, ties)
        )
