"""Read rated completions, as labelled items or, for each question, as a ranking with graded gaps."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

from assay_service.scoring.item import Item, Message
from assay_training.records.record import Dropped, Labelled, Pair, Ranking, drop_equal_pairs, find_group
from assay_training.records.rows import Row

_FEEDBACKQA = {"Bad": 0, "Could be Improved": 1, "Acceptable": 2, "Excellent": 3}
_ARENA = (1, 10)
_DIASAFETY = {"Safe": 1, "Unsafe": 0}
_HALUEVAL = {"yes": 0, "no": 1}  # the column tells whether the completion is hallucinated


@dataclass(frozen=True, slots=True)
class Rated:
    """A rated completion of a question.

    Attributes:
        question: text of the prompt, one user message.
        answer: text of the completion.
        rating: rating in 0..1; exact, so that equal ratings are ties whatever the rounding of floats.
    """

    question: str
    answer: str
    rating: Fraction


Reader = Callable[[Iterable[Row]], Iterator[Rated | Dropped]]


def build_labelled(source: str, rated: Iterable[Rated | Dropped]) -> Iterator[Labelled | Dropped]:
    """Yield every completion as an item with its rating as label."""
    for row in rated:
        if isinstance(row, Dropped):
            yield row
            continue
        item = Item.of(row.question, row.answer)
        yield Labelled(source, find_group(row.question), item, float(row.rating))


def build_rankings(source: str, rated: Iterable[Rated | Dropped]) -> Iterator[Ranking | Dropped]:
    """Yield a ranking per question, with a gap for every pair of different ratings, and ties for equal ones.

    Questions with one completion are dropped.
    """
    answers: dict[str, list[Rated]] = defaultdict(list)
    for row in rated:
        if isinstance(row, Dropped):
            yield row
        else:
            answers[row.question].append(row)
    for question, rows in answers.items():
        ratings = [row.rating for row in rows]
        pairs = tuple(Pair(i, j, float(a - b)) for i, a in enumerate(ratings) for j, b in enumerate(ratings) if a > b)
        ties = tuple((i, j) for i, a in enumerate(ratings) for j, b in enumerate(ratings) if i < j and a == b)
        if pairs or ties:
            texts = tuple(row.answer for row in rows)
            yield from drop_equal_pairs(
                Ranking(source, find_group(question), (Message("user", question),), texts, pairs, ties)
            )
        else:
            yield Dropped("a single completion")


def read_feedbackqa(rows: Iterable[Row]) -> Iterator[Rated | Dropped]:
    """Read FeedbackQA: the mean of two or three annotators' ratings.

    Bad is 0, Could be Improved 1/3, Acceptable 2/3 and Excellent 1.

    Raises:
        RecordError: a row is malformed.
    """
    for row in rows:
        ratings = row.get("rating", list)
        if not ratings or not all(isinstance(rating, str) and rating in _FEEDBACKQA for rating in ratings):
            raise row.error(f"field 'rating' is empty or not one of {', '.join(_FEEDBACKQA)}")
        # 3 is the value of Excellent, so the mean is in 0..1.
        mean = Fraction(sum(_FEEDBACKQA[rating] for rating in ratings), 3 * len(ratings))
        yield _build_rated(row.get("question", str), row.get("passage.reference.section_content", str), mean)


def read_arena_bench(rows: Iterable[Row]) -> Iterator[Rated | Dropped]:
    """Read Arena-bench: GPT-4's score of 1 to 10, scaled to 0..1; rows without a score (33 of them) are dropped.

    Raises:
        RecordError: a row is malformed.
    """
    low, high = _ARENA
    for row in rows:
        score = row.fields.get("score")
        if score is None:
            yield Dropped("no score")
            continue
        # Python counts true and false as integers.
        if isinstance(score, bool) or not isinstance(score, int | float) or not low <= score <= high:
            raise row.error(f"field 'score' is not a number from {low} to {high}")
        rating = (Fraction(score) - low) / (high - low)
        yield _build_rated(row.get("prompt", str), row.get("answer", str), rating)


def read_diasafety(rows: Iterable[Row]) -> Iterator[Rated | Dropped]:
    """Read DiaSafety: a response in its context, Safe is 1, Unsafe 0.

    Raises:
        RecordError: a row is malformed.
    """
    return _read_verdicts(rows, ("context", "response", "label"), _DIASAFETY)


def read_halueval(rows: Iterable[Row]) -> Iterator[Rated | Dropped]:
    """Read HaluEval (general): a completion without hallucinations is 1, one with them 0.

    Raises:
        RecordError: a row is malformed.
    """
    return _read_verdicts(rows, ("user_query", "chatgpt_response", "hallucination"), _HALUEVAL)


def read_gsm8k_solutions(rows: Iterable[Row]) -> Iterator[Rated | Dropped]:
    """Read the solutions of four models to GSM8K problems: right is 1, wrong 0.

    Rows of the folder's other files have no verdict and are skipped.

    Raises:
        RecordError: a row is malformed.
    """
    for row in rows:
        if "ground_truth" not in row.fields:
            continue
        for model, solution in row.fields.items():
            if isinstance(solution, dict):
                right = row.get(f"{model}.is_correct", bool)
                yield _build_rated(row.get("question", str), row.get(f"{model}.solution", str), Fraction(right))


def _build_rated(question: str, answer: str, rating: Fraction) -> Rated | Dropped:
    return Rated(question, answer, rating) if answer.strip() else Dropped("empty completion")


def _read_verdicts(
    rows: Iterable[Row], fields: tuple[str, str, str], ratings: Mapping[str, int]
) -> Iterator[Rated | Dropped]:
    """Read rows of a question, a completion and a verdict of two words, in the three `fields`."""
    question, answer, verdict = fields
    for row in rows:
        word = row.get(verdict, str)
        if word not in ratings:
            raise row.error(f"field {verdict!r} is not {' or '.join(ratings)}")
        yield _build_rated(row.get(question, str), row.get(answer, str), Fraction(ratings[word]))
