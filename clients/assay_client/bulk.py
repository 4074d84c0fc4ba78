"""Score, rank or render a file for the command line: in order, at the service's speed, and resumable."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial

from assay_client._answers import encode_outcome
from assay_client._file_run import Files, Job, Tally, run_job
from assay_client._isolation import Ranking, Scored, find_fingerprint, rank_alone, score_apart
from assay_client._output import STANDARD
from assay_client._parquet import import_pyarrow, is_parquet, write_parquet
from assay_client._rows import Fields, ItemRow, RankRow, Row
from assay_client.client import AsyncRewardClient
from assay_client.errors import InvalidInput
from assay_client.results import RenderedItem, RenderResult
from assay_client.types import ScoreFailure, Truncation

__all__ = ["Tally", "rank_file", "render_file", "score_file"]

SILENCE_S = 60.0
OWN_NAMES = Fields()


async def score_file(  # noqa: PLR0913  # options of one command, all by name
    client: AsyncRewardClient,
    source: str,
    target: str,
    *,
    model: str | None = None,
    weights: Mapping[str, float] | None = None,
    truncation: Truncation | None = None,
    tokenizer_sha256: str | None = None,
    fields: Fields = OWN_NAMES,
    silence_s: float = SILENCE_S,
    errors: str | None = None,
    on_rows: Callable[[int, int | None], None] = lambda done, total: None,
) -> Tally:
    """Score the items of a file; the output has one row for each row of the input, in order.

    An output row is the server's row, with `index` counted from 0 over the rows of the file. Its `id` is that of the
    input row, whatever its type. Its `extra` holds the keys of that row that are not part of an item. Files that are
    called `….parquet` are Parquet, and all others JSON.

    Args:
        client: the client, which sends at most `max_concurrency` chunks of at most `chunk_size` rows at once. Chunks
            begin small and grow while they are answered fast. Its `timeout_s` and `deadline_s` apply to each chunk.
        source: the path of the input, or "-".
        target: the path of the output, or "-". A file appears only when all rows are written, and the same call
            continues where an earlier one stopped.
        model: the signal or blend to score by; as in `RewardClient.score`.
        weights: the weight of each signal by name; as in `RewardClient.score`.
        truncation: "error" or "prompt_left"; as in `RewardClient.score`.
        tokenizer_sha256: the hash of the `tokenizer.json` that gave the `prompt_ids` and `completion_ids` of the rows,
            which are read only if it is given.
        fields: the keys that hold the parts of an item.
        silence_s: the seconds without an answer or a sign of life after which the service is given up.
        errors: the path of a file for the rows without a score, as JSON lines with `index`, `id`, `code`, `message`,
            `param` and `retryable`. They are in the output as well. None writes no such file; "-" is refused.
        on_rows: a function that is called with the number of rows written and of all rows (None if not known).

    Raises:
        InvalidInput: a row is malformed, two of the files are the same, or pyarrow is needed and not installed. If the
            input can be read twice, all are raised before anything is sent.
        FingerprintChanged: the model changed during the run.
        Timeout: the service was silent for `silence_s`.
    """
    sent = {"model": model, "weights": weights, "truncation": truncation, "tokenizer_sha256": tokenizer_sha256}
    send = partial(client.score, **sent)  # type: ignore[arg-type]  # each by its own name

    async def ask(part: list[ItemRow]) -> Scored:
        return await score_apart([row.item for row in part], send)

    # All that decides a row of the output: a run with other options must not continue it.
    options: Row = {"command": "score", "model": model, "weights": weights, "truncation": truncation}
    options = {**options, "fields": asdict(fields), "tokenizer_sha256": tokenizer_sha256}
    make = partial(ItemRow.of, fields=fields, token_ids=tokenizer_sha256 is not None)
    job = Job(make, ask, _build_rows, lambda result: result.fingerprint, options)
    return await run_job(job, client, _choose_files(source, target, errors), silence_s, on_rows)


def _choose_files(source: str, target: str, errors: str | None) -> Files:
    """Return the files of `score_file`, whose output may be Parquet.

    Raises:
        InvalidInput: the errors would go to stdout, or pyarrow is needed and not installed.
    """
    if errors == STANDARD:
        raise InvalidInput("--errors: - is stdout, which is for scores; name a file, or /dev/stderr")
    if not is_parquet(target):
        return Files(source, target, errors)
    import_pyarrow(target)  # fails here, before anything is sent
    return Files(source, target, errors, finish=write_parquet)


async def rank_file(  # noqa: PLR0913  # options of one command, all by name
    client: AsyncRewardClient,
    source: str,
    target: str | None,
    *,
    model: str | None = None,
    weights: Mapping[str, float] | None = None,
    top_n: int | None = None,
    silence_s: float = SILENCE_S,
    on_row: Callable[[int, RankRow, Ranking], None] = lambda index, row, result: None,
    on_rows: Callable[[int, int | None], None] = lambda done, total: None,
) -> Tally:
    """Rank the completions of each row of a file, as `score_file` scores items.

    An output row has `index`, `model`, `results` and `errors`, and `id` and `extra` where the input row has them. Each
    row is a request of its own. In a row that the service refuses, such as one with too many completions, each
    completion has the error. A `target` of None writes nothing; `on_row` is called with every row and its ranking,
    in order.
    """
    send = partial(client.rank, model=model, weights=weights, top_n=top_n)

    async def ask(part: list[RankRow]) -> Ranking:
        # One row for each request: the endpoint ranks the completions of one prompt.
        (row,) = part
        return await rank_alone(row.completions, partial(send, row.prompt, row.completions))

    def show(start: int, part: list[RankRow], result: Ranking) -> list[Row]:
        (row,) = part
        on_row(start, row, result)
        results, errors = ([encode_outcome(row) for row in rows] for rows in (result.results, result.errors))
        shown: Row = {"index": start, "model": result.model, "results": results, "errors": errors}
        return [_name_row(shown, row)]

    options: Row = {"command": "rank", "model": model, "weights": weights, "top_n": top_n}
    job = Job(RankRow.of, ask, show, find_fingerprint, options, most_rows=1)
    return await run_job(job, client, Files(source, target), silence_s, on_rows)


async def render_file(  # noqa: PLR0913  # the options of the command
    client: AsyncRewardClient,
    source: str,
    target: str | None,
    *,
    model: str | None = None,
    truncation: Truncation | None = None,
    tokenizer_sha256: str | None = None,
    fields: Fields = OWN_NAMES,
    silence_s: float = SILENCE_S,
    on_item: Callable[[RenderedItem | ScoreFailure], None] = lambda item: None,
) -> Tally:
    """Show how every signal reads the items of a file; see `score_file`.

    A `target` of None writes nothing; `on_item` is called with every item, in order.
    """

    async def ask(part: list[ItemRow]) -> RenderResult:
        return await client.render(
            [row.item for row in part], model=model, truncation=truncation, tokenizer_sha256=tokenizer_sha256
        )

    def show(start: int, part: list[ItemRow], result: RenderResult) -> list[Row]:
        for item in result.data:
            on_item(replace(item, index=start + item.index))
        return _build_rows(start, part, result)

    options: Row = {"command": "render", "model": model, "truncation": truncation, "fields": asdict(fields)}
    options = {**options, "tokenizer_sha256": tokenizer_sha256}
    make = partial(ItemRow.of, fields=fields, token_ids=tokenizer_sha256 is not None)
    job = Job(make, ask, show, lambda result: None, options)
    return await run_job(job, client, Files(source, target), silence_s)


def _build_rows(start: int, part: list[ItemRow], result: Scored | RenderResult) -> list[Row]:
    """Return the server's rows with indices that count over the file, and with the other keys of the input rows."""
    rows = (encode_outcome(replace(outcome, index=start + outcome.index)) for outcome in result.data)
    return [_name_row(row, given) for row, given in zip(rows, part, strict=True)]


def _name_row(row: Row, given: ItemRow | RankRow) -> Row:
    """Return a row of the output with the id and the other keys of its row of the input."""
    name = {} if given.id is None else {"id": given.id}
    extra = {"extra": given.extra} if given.extra else {}
    return {"index": row["index"], **name, **row, **extra}
