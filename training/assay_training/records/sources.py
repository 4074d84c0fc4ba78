"""Read the records of a run's sources, each by the reader of its format."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from assay_training.config.data import Format, Source
from assay_training.config.mixture import Augment, Step
from assay_training.records import hh, instructions, oasst, plain, preferences, prompts, ranked, rated
from assay_training.records.record import Dropped, Judged, Labelled, Prompt, Ranking, RecordError, Spoken, Understood
from assay_training.records.rows import Row, hash_file, list_data_files, read_folder_rows, read_hub_rows

R = TypeVar("R")
Reader = Callable[[Source, Iterable[Row]], Iterator[R | Dropped | Understood]]
Part = Callable[[Row], str]


@dataclass(frozen=True, slots=True)
class Read(Generic[R]):
    """The records of a run's sources, with a report on their rows.

    Attributes:
        records: records, in the order of the sources.
        dropped: numbers of dropped records, by source and reason.
        understood: number of rows of each phrase on the fields that were read or ignored, by source.
    """

    records: list[R]
    dropped: Counter[str]
    understood: dict[str, dict[str, int]]

    def report_lines(self) -> list[str]:
        """Return a line per source whose reader reports on its fields, and a line per reason for dropped records."""
        return [
            *(f"{name}: {'; '.join(_format_counts(said))}" for name, said in self.understood.items()),
            *(f"{reason}: {count:,} dropped" for reason, count in self.dropped.items()),
        ]


def _format_counts(said: Mapping[str, int]) -> Iterator[str]:
    """Yield the phrases on the rows, with a count for each that does not apply to all rows."""
    yield f"{said[_ROWS]:,} rows"
    yield from (
        phrase if count == said[_ROWS] else f"{phrase} ({count:,} rows)"
        for phrase, count in said.items()
        if phrase != _ROWS
    )


_ROWS = "rows"


@dataclass(frozen=True, slots=True)
class _Readers:
    """The readers of a format, one per kind of record; None for kinds that the format does not have."""

    rankings: Reader[Ranking] | None = None
    labelled: Reader[Labelled] | None = None
    spoken: Reader[Spoken] | None = None
    prompts: Reader[Prompt] | None = None

    def __post_init__(self) -> None:
        """Take the prompts of rankings or dialogues if the format has no prompts of its own."""
        completed: Reader[Any] | None = self.rankings or self.spoken
        if self.prompts is None and completed is not None:
            # The dataclass is frozen.
            object.__setattr__(self, "prompts", lambda source, rows: prompts.extract_prompts(completed(source, rows)))


def _take_source(reader: Callable[[str, Iterable[Row]], Iterator[Any]]) -> Reader[Any]:
    """Return a reader that takes a source from one that takes the name of a source."""
    return lambda source, rows: reader(source.name, rows)


def _report_ignored(format_: Format, reader: Callable[[str, Iterable[Row]], Iterator[Any]]) -> Reader[Any]:
    """Return a reader of one of Assay's own formats, which reports the ignored fields at the end."""

    def read(source: Source, rows: Iterable[Row]) -> Iterator[Any]:
        said, count = Counter[str](), 0

        def seen() -> Iterator[Row]:
            nonlocal count
            for row in rows:
                count += 1
                plain.say_ignored(row, format_, said)
                yield row

        yield from reader(source.name, seen())
        yield Understood(count, said)

    return read


def _build_rated_readers(reader: rated.Reader) -> _Readers:
    return _Readers(
        rankings=lambda source, rows: rated.build_rankings(source.name, reader(rows)),
        labelled=lambda source, rows: rated.build_labelled(source.name, reader(rows)),
    )


_FORMATS: dict[Format, _Readers] = {
    "hh": _Readers(rankings=_take_source(hh.read_rankings), spoken=_take_source(hh.read_dialogues)),
    "feedbackqa": _build_rated_readers(rated.read_feedbackqa),
    "arena_bench": _build_rated_readers(rated.read_arena_bench),
    "diasafety": _Readers(labelled=_build_rated_readers(rated.read_diasafety).labelled),
    "halueval": _Readers(labelled=_build_rated_readers(rated.read_halueval).labelled),
    "qa_feedback": _Readers(rankings=_take_source(ranked.read_rankings)),
    "oasst": _Readers(
        rankings=lambda source, rows: oasst.read_rankings(source.name, rows, frozenset(source.languages)),
        labelled=lambda source, rows: oasst.read_labelled(
            source.name, rows, frozenset(source.languages), source.labels
        ),
        spoken=lambda source, rows: oasst.read_dialogues(source.name, rows, frozenset(source.languages)),
    ),
    "alpaca": _Readers(spoken=_take_source(instructions.read_alpaca)),
    "dolly": _Readers(spoken=_take_source(instructions.read_dolly)),
    "gsm8k": _Readers(
        labelled=_build_rated_readers(rated.read_gsm8k_solutions).labelled, spoken=_take_source(instructions.read_gsm8k)
    ),
    "preferences": _Readers(rankings=preferences.read_rankings),
    "rankings": _Readers(rankings=_report_ignored("rankings", plain.read_rankings)),
    "labels": _Readers(labelled=_report_ignored("labels", plain.read_labelled)),
    "dialogues": _Readers(spoken=_report_ignored("dialogues", plain.read_dialogues)),
    "text": _Readers(spoken=_report_ignored("text", plain.read_texts)),
    "prompts": _Readers(
        prompts=_report_ignored(
            "prompts", lambda source, rows: prompts.extract_prompts(prompts.read_prompts(source, rows))
        )
    ),
}


def read_rankings(data: Path, sources: Sequence[Source], part: Part | None = None) -> Read[Judged]:
    """Read all rankings of the sources, whose folders are below `data`.

    Args:
        data: directory of the data sets.
        sources: sources to read.
        part: function from a row to the name of its part; None for undivided sources. Every part is read by itself,
            and the source of its records is `SOURCE/PART`.

    Raises:
        RecordError: a file or field is missing or malformed, or a format has no rankings.
    """
    return _read(data, sources, "rankings", part)


def read_labelled(data: Path, sources: Sequence[Source], part: Part | None = None) -> Read[Judged]:
    """Read all labelled items of the sources; the arguments are those of `read_rankings`.

    Raises:
        RecordError: a file or field is missing or malformed, or a format has no labels.
    """
    return _read(data, sources, "labelled", part)


def read_spoken(data: Path, sources: Sequence[Source]) -> Read[Spoken]:
    """Read all dialogues and texts of the sources.

    Raises:
        RecordError: a file or field is missing or malformed, or a format has neither.
    """
    return _read(data, sources, "spoken")


def read_prompts(data: Path, sources: Sequence[Source]) -> Read[Prompt]:
    """Read all prompts of the sources: rows of prompts, or those of dialogues and rankings; each once per source.

    Raises:
        RecordError: a file or field is missing or malformed, or a format has no prompts.
    """
    return _read(data, sources, "prompts")


def hash_data(data: Path, sources: Sequence[Source], mixture: Sequence[Step]) -> dict[str, str]:
    """Return the identity of a run's data: the SHA-256 of each file, and the commit of each hub data set."""
    hashes = {str(step.file): hash_file(data / step.file) for step in mixture if isinstance(step, Augment)}
    for source in sources:
        if source.hub is not None:
            name = " ".join(filter(None, (source.hub, source.hub_config, source.hub_dir, source.split)))
            # A commit fixes the content of a hub data set, so its files need no hash.
            hashes[name] = str(source.revision)
        else:
            hashes |= {str(path.relative_to(data)): hash_file(path) for path in list_data_files(data / source.name)}
    return hashes


_KINDS = {"rankings": "rankings", "labelled": "labelled items", "spoken": "dialogues or texts", "prompts": "prompts"}


def _read(data: Path, sources: Sequence[Source], kind: str, part: Part | None = None) -> Read[Any]:
    read: Read[Any] = Read([], Counter(), {})
    for source in sources:
        reader = getattr(_FORMATS[source.format], kind)
        if reader is None:
            able = ", ".join(name for name, readers in _FORMATS.items() if getattr(readers, kind) is not None)
            raise RecordError(
                f"sources: {source.name}: format {source.format!r} has no {_KINDS[kind]}; these have: {able}"
            )
        before = len(read.records)
        parts = _divide(source, _read_rows(data, source), part)
        for record in (record for divided, rows in parts for record in reader(divided, rows)):
            if isinstance(record, Dropped):
                read.dropped[f"{source.name}: {record.reason}"] += 1
            elif isinstance(record, Understood):
                said = read.understood.setdefault(source.name, {})
                for phrase, count in {_ROWS: record.rows, **record.said}.items():
                    # Summed, because a divided source is read part by part.
                    said[phrase] = said.get(phrase, 0) + count
            else:
                read.records.append(record)
        # A source without a record of the kind is a mistake in its format or its data.
        if len(read.records) == before:
            reasons = ", ".join(reason for reason in read.dropped if reason.startswith(f"{source.name}: "))
            raise RecordError(f"sources: {source.name}: no {_KINDS[kind]} in the source{reasons and f' ({reasons})'}")
    return read


def _divide(source: Source, rows: Iterator[Row], part: Part | None) -> Iterator[tuple[Source, Iterable[Row]]]:
    if part is None:
        yield source, rows
        return
    # Rows of a part may be anywhere in a file, and a reader groups only rows that it reads together.
    by_part: dict[str, list[Row]] = {}
    for row in rows:
        by_part.setdefault(part(row), []).append(row)
    for name, part_rows in by_part.items():
        yield source.model_copy(update={"name": f"{source.name}/{name}"}), part_rows


def _read_rows(data: Path, source: Source) -> Iterator[Row]:
    if source.hub is None:
        rows = read_folder_rows(data / source.name)
    else:
        rows = read_hub_rows(source.hub, source.hub_config, source.hub_dir, str(source.revision), source.split)
    return (row.renamed(source.fields) for row in rows) if source.fields else rows
