"""Answers with a rating: each is a labelled item, and those of one question are a ranking with graded gaps."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

from assay_service.scoring.item import Item, Message
from assay_training.records.record import Labelled, LeftOut, Pair, Ranking, drop_equal_pairs, group_of
from assay_training.records.rows import Row

_FEEDBACKQA = {"Bad": 0, "Could be Improved": 1, "Acceptable": 2, "Excellent": 3}
_ARENA = (1, 10)
_DIASAFETY = {"Safe": 1, "Unsafe": 0}
_HALUEVAL = {"yes": 0, "no": 1}  # whether the answer is hallucinated


@dataclass(frozen=True, slots=True)
class Rated:
    """A question's answer and its rating.

    Attributes:
        question: the prompt, one user message.
        answer: the completion.
        rating: 0..1; exact, so that equal ratings are ties and not float noise.
    """

    question: str
    answer: str
    rating: Fraction


Reader = Callable[[Iterable[Row]], Iterator[Rated | LeftOut]]


def labelled(source: str, rated: Iterable[Rated | LeftOut]) -> Iterator[Labelled | LeftOut]:
    """Every answer with its rating as its label."""
    for row in rated:
        if isinstance(row, LeftOut):
            yield row
            continue
        item = Item.of(row.question, row.answer)
        yield Labelled(source, group_of(row.question), item, float(row.rating))


def rankings(source: str, rated: Iterable[Rated | LeftOut]) -> Iterator[Ranking | LeftOut]:
    """Per question its answers, every pair with different ratings and its gap, and the ties."""
    answers: dict[str, list[Rated]] = defaultdict(list)
    for row in rated:
        if isinstance(row, LeftOut):
            yield row
        else:
            answers[row.question].append(row)
    for question, of in answers.items():
        ratings = [row.rating for row in of]
        pairs = tuple(Pair(i, j, float(a - b)) for i, a in enumerate(ratings) for j, b in enumerate(ratings) if a > b)
        ties = tuple((i, j) for i, a in enumerate(ratings) for j, b in enumerate(ratings) if i < j and a == b)
        if pairs or ties:
            texts = tuple(row.answer for row in of)
            yield from drop_equal_pairs(
                Ranking(source, group_of(question), (Message("user", question),), texts, pairs, ties)
            )
        else:
            yield LeftOut("one answer alone")


def feedbackqa(rows: Iterable[Row]) -> Iterator[Rated | LeftOut]:
    """FeedbackQA: the mean of two or three raters, Bad 0, Could be Improved 1/3, Acceptable 2/3, Excellent 1."""
    for row in rows:
        ratings = row.get("rating", list)
        if not ratings or not all(isinstance(rating, str) and rating in _FEEDBACKQA for rating in ratings):
            raise row.error(f"field 'rating' is empty or not one of {', '.join(_FEEDBACKQA)}")
        mean = Fraction(sum(_FEEDBACKQA[rating] for rating in ratings), 3 * len(ratings))
        yield _rated(row.get("question", str), row.get("passage.reference.section_content", str), mean)


def arena_bench(rows: Iterable[Row]) -> Iterator[Rated | LeftOut]:
    """Arena-bench: GPT-4's score of 1 to 10, brought to 0..1; rows without a score are left out (33 of them)."""
    low, high = _ARENA
    for row in rows:
        score = row.fields.get("score")
        if score is None:
            yield LeftOut("no score")
            continue
        if isinstance(score, bool) or not isinstance(score, int | float) or not low <= score <= high:
            raise row.error(f"field 'score' is not a number from {low} to {high}")
        rating = (Fraction(score) - low) / (high - low)
        yield _rated(row.get("prompt", str), row.get("answer", str), rating)


def diasafety(rows: Iterable[Row]) -> Iterator[Rated | LeftOut]:
    """DiaSafety: a response in its context, Safe 1, Unsafe 0."""
    return _verdicts(rows, ("context", "response", "label"), _DIASAFETY)


def halueval(rows: Iterable[Row]) -> Iterator[Rated | LeftOut]:
    """HaluEval, general: an answer without hallucinations 1, with 0."""
    return _verdicts(rows, ("user_query", "chatgpt_response", "hallucination"), _HALUEVAL)


def gsm8k_solutions(rows: Iterable[Row]) -> Iterator[Rated | LeftOut]:
    """GSM8K's example solutions of four models: right 1, wrong 0. Other files of the folder hold no verdicts."""
    for row in rows:
        if "ground_truth" not in row.fields:
            continue
        for model, solution in row.fields.items():
            if isinstance(solution, dict):
                right = row.get(f"{model}.is_correct", bool)
                yield _rated(row.get("question", str), row.get(f"{model}.solution", str), Fraction(right))


def _rated(question: str, answer: str, rating: Fraction) -> Rated | LeftOut:
    return Rated(question, answer, rating) if answer.strip() else LeftOut("empty answer")


def _verdicts(
    rows: Iterable[Row], fields: tuple[str, str, str], ratings: Mapping[str, int]
) -> Iterator[Rated | LeftOut]:
    """Rows of question, answer and one of two words, under the names `fields`."""
    question, answer, verdict = fields
    for row in rows:
        word = row.get(verdict, str)
        if word not in ratings:
            raise row.error(f"field {verdict!r} is not {' or '.join(ratings)}")
        yield _rated(row.get(question, str), row.get(answer, str), Fraction(ratings[word]))
