"""Do the work of one command on the rows of a file: count, check the fingerprint, write, and continue a stopped run."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from assay_client._answers import check_fingerprint
from assay_client._drive import LOOKS, drive_rows, run_off_loop
from assay_client._isolation import Ranking, Scored
from assay_client._output import Sink, check_targets, open_errors, open_output
from assay_client._rows import ItemRow, RankRow, Row, read_rows, survey
from assay_client.client import AsyncRewardClient
from assay_client.errors import AssayError, ServerError
from assay_client.results import RenderResult

RowT = TypeVar("RowT", ItemRow, RankRow)
Result = TypeVar("Result", Scored, Ranking, RenderResult)


@dataclass
class Tally:
    """The counts of one file.

    Attributes:
        scored: the number of items that were scored.
        failed: the number of items that failed; they are in the output, with their error.
        first_error: the error of the first failed item, as "row 12: code: message"; None if none failed.
        fingerprint: the fingerprint of all scores; None if the file has no rows.
        extra: the keys of the input that are copied to the output under `extra`.
    """

    scored: int = 0
    failed: int = 0
    first_error: str | None = None
    fingerprint: str | None = None
    extra: tuple[str, ...] = ()

    def add(self, row: Row) -> None:
        """Count the items of one row of the output."""
        results, errors = row.get("results", [row]), row.get("errors", [])
        assert isinstance(results, list)
        assert isinstance(errors, list)
        for item in [*results, *errors]:
            error = item.get("error")
            self.scored += error is None
            self.failed += error is not None
            if error is not None and self.first_error is None:
                self.first_error = f"row {row['index']}: {error['code']}: {error['message']}"


@dataclass(frozen=True)
class Job(Generic[RowT, Result]):
    """The work of one command on the rows of a file.

    Attributes:
        make: the function that reads a row of the input.
        ask: the function that sends a chunk of rows to the service.
        show: the function that makes the rows of the output from the index of a chunk's first row, the chunk and its
            answer.
        fingerprint: the function that returns the fingerprint of an answer; None if the answer has none.
        options: everything besides the input that decides the output, including the name of the command.
        most_rows: the most rows of one request; None for the client's `chunk_size`.
    """

    make: Callable[[Row], RowT]
    ask: Callable[[list[RowT]], Awaitable[Result]]
    show: Callable[[int, list[RowT], Result], list[Row]]
    fingerprint: Callable[[Result], str | None]
    options: Row
    most_rows: int | None = None


@dataclass(frozen=True)
class Files:
    """The paths of one command.

    Attributes:
        source: the path of the input, or "-".
        target: the path of the output, or "-"; None writes none.
        errors: the path of the file for rows without a score; None writes none.
        finish: a function that writes the output from its rows, as in `open_output`.
    """

    source: str
    target: str | None
    errors: str | None = None
    finish: Callable[[Path, Path], None] | None = None


@dataclass
class _Progress(Generic[RowT, Result]):
    """The rows of the output: how many there are, what they count to, and where they go.

    Attributes:
        job: the work of the command.
        tally: the counts so far.
        total: the number of rows of the input; None if it cannot be read twice.
        sink: the output; None writes none.
        write_error: the function that writes the row of an item that failed.
        on_rows: the function that is called with the number of rows written and of all rows.
        done: the number of rows written.
    """

    job: Job[RowT, Result]
    tally: Tally
    total: int | None
    sink: Sink | None
    write_error: Callable[[Row], None]
    on_rows: Callable[[int, int | None], None]
    done: int = 0

    def recount(self) -> None:
        """Count the rows of an earlier run, also for the fingerprint: a file may not mix scores of two models."""
        if self.sink is not None:
            for row in self.sink.read_earlier():
                self._count(row)
            self.done, self.tally.fingerprint = self.sink.earlier, self.sink.fingerprint
        self.on_rows(self.done, self.total)

    def put(self, part: list[RowT], result: Result) -> None:
        """Count and write the answer to the next rows of the input.

        Raises:
            FingerprintChanged: the model changed during the run.
        """
        # Checked before anything is written, so that the rows in the file stay comparable.
        if (fingerprint := self.job.fingerprint(result)) is not None:
            self.tally.fingerprint = check_fingerprint(self.tally.fingerprint, fingerprint)
        shown = self.job.show(self.done, part, result)
        for row in shown:
            self._count(row)
        if self.sink is not None:
            self.sink.write(shown, self.tally.fingerprint)
        self.done += len(part)
        self.on_rows(self.done, self.total)

    def _count(self, row: Row) -> None:
        self.tally.add(row)
        self.write_error(row)


async def run_job(
    job: Job[RowT, Result],
    client: AsyncRewardClient,
    files: Files,
    silence_s: float,
    on_rows: Callable[[int, int | None], None] = lambda done, total: None,
) -> Tally:
    """Do the work of a command on all rows of its input, and return the counts; see `bulk.score_file`.

    Raises:
        InvalidInput: a row is malformed, or two of the files are the same.
        FingerprintChanged: the model changed during the run.
        Timeout: the service was silent for `silence_s`.
    """
    check_targets(files.source, files.target, files.errors)
    # In a thread, because reading a large file would block the event loop.
    known = await run_off_loop(partial(survey, files.source, job.make))
    # A run continues only with the same input and options. A pipe cannot be read twice, so that no run continues it.
    total, run = (known.rows, {"input": known.sha256, **job.options}) if known else (None, None)
    # The errors appear first: a run that is killed between the two files goes on, and writes both.
    with (
        open_output(files.target, run, files.finish) if files.target is not None else nullcontext() as sink,
        open_errors(files.errors) as write_error,
    ):
        tally = Tally(extra=known.extra if known else ())
        progress = _Progress(job, tally, total, sink, write_error, on_rows)
        progress.recount()
        # Read a second time: the survey checked all rows, and kept none of them in memory.
        await drive_rows(
            read_rows(files.source, job.make),
            start=progress.done,
            most_rows=job.most_rows or client.chunk_size,
            ask=job.ask,
            put=progress.put,
            alive=partial(is_alive, client, silence_s / LOOKS),
            width=client.max_concurrency,
            silence_s=silence_s,
        )
    return tally


async def is_alive(client: AsyncRewardClient, within_s: float) -> bool:
    """Return whether the service answers anything at all, even an error, while it works."""
    try:
        await asyncio.wait_for(client.info(), within_s)
    except ServerError:
        return True
    except (TimeoutError, AssayError):
        return False
    return True
