"""JSONL in, JSONL out: lazily, in order, with as many requests in flight as the client allows."""

import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TextIO, TypeVar

from assay_client._protocol import CompletionLike, same_fingerprint
from assay_client.client import RewardClient
from assay_client.errors import InvalidInput
from assay_client.types import (
    Item,
    Message,
    RankResult,
    Score,
    ScoreFailure,
    ScoreResult,
    Truncation,
    as_messages,
)

STANDARD = "-"  # stdin or stdout
RANK_KEYS = frozenset({"prompt", "messages", "completions", "id"})
AHEAD = 2  # times the concurrency: work goes on while the oldest request is slow

Row = dict[str, object]
Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass
class Tally:
    """What a file came to.

    Attributes:
        scored: items with a score.
        failed: items without one; they are in the output, with their error.
        first_error: about the first failed item, as "row 12: code: message"; None if none failed.
        fingerprint: of all scores; None if there was no row.
    """

    scored: int = 0
    failed: int = 0
    first_error: str | None = None
    fingerprint: str | None = None

    def add(self, row: int, outcome: Score | ScoreFailure) -> None:
        """Counts one outcome of input row `row`."""
        if isinstance(outcome, Score):
            self.scored += 1
            return
        self.failed += 1
        if self.first_error is None:
            self.first_error = f"row {row}: {outcome.error.code}: {outcome.error.message}"


@dataclass(frozen=True)
class RankRow:
    """One prompt with its completions, from one line of a file."""

    prompt: str | tuple[Message, ...]
    completions: tuple[CompletionLike, ...]
    id: str | None

    @classmethod
    def of(cls, row: Row) -> "RankRow":
        """From `{"prompt" | "messages", "completions", "id"?}`; `messages` are the prompt as a chat.

        Raises:
            InvalidInput: another shape, or other keys.
        """
        unknown = sorted(row.keys() - RANK_KEYS)
        if unknown:
            raise InvalidInput(f"unknown key `{unknown[0]}`; a row has {', '.join(sorted(RANK_KEYS))}")
        if ("prompt" in row) == ("messages" in row):
            raise InvalidInput("a row has exactly one of `prompt` or `messages`")
        name = "prompt" if "prompt" in row else "messages"
        prompt, completions, id_ = row[name], row.get("completions"), row.get("id")
        if not isinstance(completions, list) or not completions:
            raise InvalidInput("`completions` must be a list with at least one completion")
        if id_ is not None and not isinstance(id_, str):
            raise InvalidInput("`id` must be text")
        if name == "messages" or not isinstance(prompt, str):
            prompt = as_messages(prompt, name)
        for completion in completions:
            if not isinstance(completion, str):
                Item.of({"prompt": "", **completion} if isinstance(completion, dict) else completion)
        return cls(prompt, tuple(completions), id_)


def read_rows(source: str, make: Callable[[Row], Made]) -> Iterator[Made]:
    """One value per line of a JSONL file, made when it is asked for.

    Args:
        source: path, or "-" for stdin.
        make: from the line's object; raises InvalidInput if it does not like it.

    Raises:
        InvalidInput: "FILE:LINE: what is wrong". Blank lines are wrong, save at the end of the file.
    """
    blank = 0
    with _opened(source) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                blank = blank or number
                continue
            where = f"{'stdin' if source == STANDARD else source}:{blank or number}"
            if blank:
                raise InvalidInput(f"{where}: blank line")
            try:
                yield make(_object(line.decode("utf-8-sig" if number == 1 else "utf-8")))
            except UnicodeDecodeError as error:
                raise InvalidInput(f"{where}: not UTF-8: {error.reason}") from error
            except InvalidInput as error:
                raise InvalidInput(f"{where}: {error}") from error


def _object(line: str) -> Row:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidInput(f"expected an object, got {type(value).__name__}")
    return value


@contextmanager
def _opened(source: str) -> Iterator[BinaryIO]:
    if source == STANDARD:
        yield sys.stdin.buffer
        return
    with open(source, "rb") as lines:
        yield lines


def count_rows(source: str) -> int | None:
    """Rows in a file, for a progress bar; None where counting would use them up."""
    if not Path(source).is_file():
        return None
    with open(source, "rb") as lines:
        return sum(1 for line in lines if line.strip())


@contextmanager
def written(target: str) -> Iterator[TextIO]:
    """A text file that appears under its name only when all is written; "-" is stdout.

    An exception inside leaves what was there before. Devices and pipes are written to directly.
    """
    if target == STANDARD:
        yield sys.stdout
        sys.stdout.flush()
        return
    path = Path(target).resolve()  # so that a link stays a link
    if path.exists() and not path.is_file():
        with path.open("w", encoding="utf-8") as file:
            yield file
        return
    # Beside the target, as a rename does not cross file systems.
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _in_order(jobs: Iterable[Given], work: Callable[[Given], Made], width: int) -> Iterator[tuple[Given, Made]]:
    """Each job with its result, in the order of the jobs; `width` at work, at most `AHEAD * width` held."""
    pool = ThreadPoolExecutor(width, "assay-bulk")
    window: deque[tuple[Given, Future[Made]]] = deque()
    try:
        for job in jobs:
            window.append((job, pool.submit(work, job)))
            if len(window) >= AHEAD * width:
                done, future = window.popleft()
                yield done, future.result()
        while window:
            done, future = window.popleft()
            yield done, future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _chunks(rows: Iterator[Item], size: int) -> Iterator[tuple[int, list[Item]]]:
    start = 0
    while part := list(islice(rows, size)):
        yield start, part
        start += len(part)


def _to_wire(outcome: Score | ScoreFailure) -> Row:
    """The server's row again: what it leaves out is left out."""
    row = asdict(outcome)
    if row["id"] is None:
        del row["id"]
    for signal in row.get("signals", {}).values():
        if signal["prob"] is None:
            del signal["prob"]
    return row


def _write(file: TextIO, row: Row) -> None:
    file.write(json.dumps(row, allow_nan=False) + "\n")


def score_file(
    client: RewardClient,
    source: str,
    target: str,
    *,
    model: str | None = None,
    weights: Mapping[str, float] | None = None,
    truncation: Truncation | None = None,
    on_rows: Callable[[int], None] = lambda count: None,
) -> Tally:
    """Scores a JSONL file of items in wire form; one row out per row in, in order.

    A row out is the server's, with `index` counted from 0 over the file. The deadline is each chunk's.

    Args:
        client: sends `max_concurrency` chunks of `chunk_size` rows at once.
        source: path or "-".
        target: path or "-"; a file appears only when all is written.
        model: signal or blend; as in `RewardClient.score`.
        weights: as in `RewardClient.score`.
        truncation: as in `RewardClient.score`.
        on_rows: told how many rows were written since it was last told.

    Raises:
        InvalidInput: a malformed row.
        FingerprintChanged: the model changed on the way.
    """

    def work(part: tuple[int, list[Item]]) -> ScoreResult:
        return client.score(part[1], model=model, weights=weights, truncation=truncation)

    tally = Tally()
    chunks = _chunks(read_rows(source, Item.of), client.chunk_size)
    with written(target) as file:
        for (start, _), result in _in_order(chunks, work, client.max_concurrency):
            tally.fingerprint = same_fingerprint(tally.fingerprint, result.fingerprint)
            for local in result.data:
                outcome = replace(local, index=start + local.index)
                tally.add(outcome.index, outcome)
                _write(file, _to_wire(outcome))
            on_rows(len(result.data))
    return tally


def rank_file(
    client: RewardClient,
    source: str,
    target: str | None,
    *,
    model: str | None = None,
    weights: Mapping[str, float] | None = None,
    top_n: int | None = None,
    on_row: Callable[[int, RankRow, RankResult], None] = lambda index, row, result: None,
) -> Tally:
    """Ranks each row's completions; one row out per row in, `{"index", "id"?, "model", "results", "errors"}`.

    As `score_file`, save that each row is a request of its own, that `target` None writes nothing, and that
    `on_row` is given every row with its ranking, in order.
    """

    def work(row: RankRow) -> RankResult:
        return client.rank(row.prompt, row.completions, model=model, weights=weights, top_n=top_n)

    tally = Tally()
    rows = read_rows(source, RankRow.of)
    with written(target) if target is not None else nullcontext() as file:
        for index, (row, result) in enumerate(_in_order(rows, work, client.max_concurrency)):
            tally.fingerprint = same_fingerprint(tally.fingerprint, result.provenance.fingerprint)
            for ranked in result.results:
                tally.add(index, ranked)
            for failed in result.errors:
                tally.add(index, failed)
            if file is not None:
                name = {} if row.id is None else {"id": row.id}
                ranks, errors = ([_to_wire(one) for one in many] for many in (result.results, result.errors))
                _write(file, {"index": index, **name, "model": result.model, "results": ranks, "errors": errors})
            on_row(index, row, result)
    return tally
