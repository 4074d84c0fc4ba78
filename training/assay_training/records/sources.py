"""Which formats there are, what kinds of records each holds, and a run's sources to records."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from assay_training.config.data import Format, Source
from assay_training.config.mixture import Augment, Step
from assay_training.records import hh, instructions, oasst, plain, preferences, prompts, ranked, rated
from assay_training.records.record import Judged, Labelled, LeftOut, Prompt, Ranking, RecordError, Spoken, Understood
from assay_training.records.rows import Row, files, rows_of_files, rows_of_hub, sha256

R = TypeVar("R")
Reader = Callable[[Source, Iterable[Row]], Iterator[R | LeftOut | Understood]]
Part = Callable[[Row], str]


@dataclass(frozen=True, slots=True)
class Read(Generic[R]):
    """What the sources of a run hold.

    Attributes:
        records: in the order of the sources.
        left_out: rows that are known to be faulty, by source and reason.
        understood: by source, what was read from which field and what was ignored, with the number of rows.
    """

    records: list[R]
    left_out: Counter[str]
    understood: dict[str, dict[str, int]]

    def report_lines(self) -> list[str]:
        """Return a line per source whose fields were understood, and one per reason to leave something out."""
        return [
            *(f"{name}: {'; '.join(_counted(said))}" for name, said in self.understood.items()),
            *(f"{reason}: {count:,} left out" for reason, count in self.left_out.items()),
        ]


def _counted(said: Mapping[str, int]) -> Iterator[str]:
    """What was said of the rows, with a count where it does not hold of all."""
    yield f"{said[_ROWS]:,} rows"
    yield from (
        phrase if count == said[_ROWS] else f"{phrase} ({count:,} rows)"
        for phrase, count in said.items()
        if phrase != _ROWS
    )


_ROWS = "rows"


@dataclass(frozen=True, slots=True)
class _Readers:
    """What a format can be read as; None where it holds no such thing."""

    rankings: Reader[Ranking] | None = None
    labelled: Reader[Labelled] | None = None
    spoken: Reader[Spoken] | None = None
    prompts: Reader[Prompt] | None = None

    def __post_init__(self) -> None:
        """Whatever is answered was asked."""
        answered: Reader[Any] | None = self.rankings or self.spoken
        if self.prompts is None and answered is not None:
            object.__setattr__(self, "prompts", lambda source, rows: prompts.asked(answered(source, rows)))


def _named(reader: Callable[[str, Iterable[Row]], Iterator[Any]]) -> Reader[Any]:
    """A reader that needs of its source only the name."""
    return lambda source, rows: reader(source.name, rows)


def _own(format_: Format, reader: Callable[[str, Iterable[Row]], Iterator[Any]]) -> Reader[Any]:
    """Return a reader of one of our own formats, which says at the end which fields it ignored."""

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


def _rated(reader: rated.Reader) -> _Readers:
    return _Readers(
        rankings=lambda source, rows: rated.rankings(source.name, reader(rows)),
        labelled=lambda source, rows: rated.labelled(source.name, reader(rows)),
    )


_FORMATS: dict[Format, _Readers] = {
    "hh": _Readers(rankings=_named(hh.rankings), spoken=_named(hh.dialogues)),
    "feedbackqa": _rated(rated.feedbackqa),
    "arena_bench": _rated(rated.arena_bench),
    "diasafety": _Readers(labelled=_rated(rated.diasafety).labelled),
    "halueval": _Readers(labelled=_rated(rated.halueval).labelled),
    "qa_feedback": _Readers(rankings=_named(ranked.rankings)),
    "oasst": _Readers(
        rankings=lambda source, rows: oasst.rankings(source.name, rows, frozenset(source.languages)),
        labelled=lambda source, rows: oasst.labelled(source.name, rows, frozenset(source.languages), source.labels),
        spoken=lambda source, rows: oasst.dialogues(source.name, rows, frozenset(source.languages)),
    ),
    "alpaca": _Readers(spoken=_named(instructions.alpaca)),
    "dolly": _Readers(spoken=_named(instructions.dolly)),
    "gsm8k": _Readers(labelled=_rated(rated.gsm8k_solutions).labelled, spoken=_named(instructions.gsm8k)),
    "preferences": _Readers(rankings=preferences.rankings),
    "rankings": _Readers(rankings=_own("rankings", plain.rankings)),
    "labels": _Readers(labelled=_own("labels", plain.labels)),
    "dialogues": _Readers(spoken=_own("dialogues", plain.dialogues)),
    "text": _Readers(spoken=_own("text", plain.text)),
    "prompts": _Readers(prompts=_own("prompts", lambda source, rows: prompts.asked(prompts.prompts(source, rows)))),
}


def read_rankings(data: Path, sources: Sequence[Source], part: Part | None = None) -> Read[Judged]:
    """All rankings of `sources`, whose folders are below `data`.

    Args:
        data: the directory.
        sources: to read.
        part: which part of its source a row is of, `None` for undivided sources. Every part is read by itself, and its
            records' source is `SOURCE/PART`.

    Raises:
        RecordError: a file or field is missing, or a format has no rankings.
    """
    return _read(data, sources, "rankings", part)


def read_labelled(data: Path, sources: Sequence[Source], part: Part | None = None) -> Read[Judged]:
    """All labelled items of `sources`; `part` is as for `read_rankings`.

    Raises:
        RecordError: a file or field is missing, or a format has no labels.
    """
    return _read(data, sources, "labelled", part)


def read_spoken(data: Path, sources: Sequence[Source]) -> Read[Spoken]:
    """All dialogues and texts of `sources`.

    Raises:
        RecordError: a file or field is missing, or a format has neither.
    """
    return _read(data, sources, "spoken")


def read_prompts(data: Path, sources: Sequence[Source]) -> Read[Prompt]:
    """All prompts of `sources`: of their own, or those of dialogues and rankings; within a source each once.

    Raises:
        RecordError: a file or field is missing, or a format has none.
    """
    return _read(data, sources, "prompts")


def data_hashes(data: Path, sources: Sequence[Source], mixture: Sequence[Step]) -> dict[str, str]:
    """What a run reads: SHA-256 of every file by its path below `data`, the commit of a hub set."""
    hashes = {str(step.file): sha256(data / step.file) for step in mixture if isinstance(step, Augment)}
    for source in sources:
        if source.hub is not None:
            name = " ".join(filter(None, (source.hub, source.hub_config, source.hub_dir, source.split)))
            hashes[name] = str(source.revision)
        else:
            hashes |= {str(path.relative_to(data)): sha256(path) for path in files(data / source.name)}
    return hashes


def _read(data: Path, sources: Sequence[Source], kind: str, part: Part | None = None) -> Read[Any]:
    read: Read[Any] = Read([], Counter(), {})
    for source in sources:
        reader = getattr(_FORMATS[source.format], kind)
        if reader is None:
            able = ", ".join(name for name, readers in _FORMATS.items() if getattr(readers, kind) is not None)
            raise RecordError(f"sources: {source.name}: format {source.format!r} has no {kind}; these have: {able}")
        before = len(read.records)
        parts = _parts(source, _rows(data, source), part)
        for found in (found for of, rows in parts for found in reader(of, rows)):
            if isinstance(found, LeftOut):
                read.left_out[f"{source.name}: {found.reason}"] += 1
            elif isinstance(found, Understood):
                said = read.understood.setdefault(source.name, {})
                for phrase, count in {_ROWS: found.rows, **found.said}.items():
                    said[phrase] = said.get(phrase, 0) + count
            else:
                read.records.append(found)
        if len(read.records) == before:
            reasons = ", ".join(reason for reason in read.left_out if reason.startswith(f"{source.name}: "))
            raise RecordError(f"sources: {source.name}: no {kind} in it{reasons and f' ({reasons})'}")
    return read


def _parts(source: Source, rows: Iterator[Row], part: Part | None) -> Iterator[tuple[Source, Iterable[Row]]]:
    if part is None:
        yield source, rows
        return
    by_part: dict[str, list[Row]] = {}
    for row in rows:
        by_part.setdefault(part(row), []).append(row)
    for name, of in by_part.items():
        yield source.model_copy(update={"name": f"{source.name}/{name}"}), of


def _rows(data: Path, source: Source) -> Iterator[Row]:
    if source.hub is None:
        rows = rows_of_files(data / source.name)
    else:
        rows = rows_of_hub(source.hub, source.hub_config, source.hub_dir, str(source.revision), source.split)
    return (row.renamed(source.fields) for row in rows) if source.fields else rows
