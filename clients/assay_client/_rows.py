"""Rows of an input file: JSON lines or one JSON list, plain or compressed with gzip."""

import gzip
import hashlib
import io
import json
import sys
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar, cast

from assay_client.errors import InvalidInput
from assay_client.types import ITEM_KEYS, Completion, Item, Message, as_messages

STANDARD = "-"  # stdin
RANK_KEYS = frozenset({"prompt", "messages", "completions", "id"})
GZIP_MAGIC = b"\x1f\x8b"
HEAD_BYTES = 4096  # that are looked at to see whether a file is a list
SHOWN_KEYS = 8  # of a row, in an error message

Row = dict[str, object]
Made = TypeVar("Made")


class HasExtra(Protocol):
    """A row that keeps the keys that are not part of what is asked."""

    @property
    def extra(self) -> Row: ...


ExtraT = TypeVar("ExtraT", bound=HasExtra)


@dataclass(frozen=True)
class Fields:
    """Which keys of a row hold the parts of an item."""

    prompt: str = "prompt"
    completion: str = "completion"
    messages: str = "messages"


@dataclass(frozen=True)
class ItemRow:
    """One item, and the other keys of its row."""

    item: Item
    extra: Row

    @classmethod
    def of(cls, row: Row, fields: Fields) -> "ItemRow":
        """Return the item of a row whose keys `fields` names.

        An `id` that is not text is copied with the other keys, as the service takes text only.

        Raises:
            InvalidInput: the row holds no item.
        """
        names = dict(
            zip((fields.prompt, fields.completion, fields.messages), ("prompt", "completion", "messages"), strict=True)
        )
        names |= {key: key for key in ITEM_KEYS - set(names.values())}
        known, extra = _parts(row, names)
        if not known.keys() & {"completion", "messages"}:
            raise InvalidInput(
                f"an item has `{fields.prompt}` with `{fields.completion}`, or `{fields.messages}`; this row has "
                f"{_names(row)}. Name its fields with --prompt-field and --completion-field, or --messages-field"
            )
        return cls(Item.of(known), extra)

    @property
    def chars(self) -> int:
        """Characters of the item, a measure of its work."""
        item = self.item
        messages = [*(item.messages or ()), *(() if isinstance(item.prompt, str | None) else item.prompt)]
        texts = [item.prompt, item.completion, *(cast("Message", message).content for message in messages)]
        return sum(len(text) for text in texts if isinstance(text, str))


@dataclass(frozen=True)
class RankRow:
    """One prompt with its completions, and the other keys of its row."""

    prompt: str | tuple[Message, ...]
    completions: tuple[Completion | Row, ...]
    id: str | None
    extra: Row

    @classmethod
    def of(cls, row: Row) -> "RankRow":
        """From `{"prompt" | "messages", "completions", "id"?}`; `messages` are the prompt as a chat.

        Raises:
            InvalidInput: another shape.
        """
        known, extra = _parts(row, {key: key for key in RANK_KEYS})
        if ("prompt" in known) == ("messages" in known):
            raise InvalidInput(f"a row has exactly one of `prompt` or `messages`; this one has {_names(row)}")
        name = "prompt" if "prompt" in known else "messages"
        prompt, completions = known[name], known.get("completions")
        if not isinstance(completions, list) or not completions:
            raise InvalidInput("`completions` must be a list with at least one completion")
        if name == "messages" or not isinstance(prompt, str):
            prompt = as_messages(prompt, name)
        for completion in completions:
            Item.of({"prompt": "", **(completion if isinstance(completion, dict) else {"completion": completion})})
        return cls(prompt, tuple(completions), cast("str | None", known.get("id")), extra)

    @property
    def chars(self) -> int:
        """Characters of the completions, a measure of their work."""
        return sum(len(str(completion)) for completion in self.completions)


def _parts(row: Row, names: dict[str, str]) -> tuple[Row, Row]:
    """What is known of a row, under the names of the wire, and the rest."""
    known = {name: row[key] for key, name in names.items() if key in row}
    if not isinstance(known.get("id", ""), str | None):
        del known["id"]
    taken = {key for key, name in names.items() if name in known}
    return known, {key: value for key, value in row.items() if key not in taken}


def _names(row: Row) -> str:
    shown = ", ".join(f"`{key}`" for key in [*row][:SHOWN_KEYS])
    return (shown or "no key") + ", …" * (len(row) > SHOWN_KEYS)


@dataclass(frozen=True)
class Survey:
    """What a file holds: rows, the SHA-256 of its bytes, and keys that are copied to the output."""

    rows: int
    sha256: str
    extra: tuple[str, ...]


def survey(source: str, make: Callable[[Row], ExtraT]) -> Survey | None:
    """Read a whole file before any of it is sent, so that a faulty row costs nothing; None for stdin and pipes.

    Raises:
        InvalidInput: as `read_rows`.
    """
    if source == STANDARD or not Path(source).is_file():
        return None
    count, extra = 0, dict[str, None]()
    with closing(read_rows(source, make)) as rows:
        for row in rows:
            count += 1
            extra |= dict.fromkeys(row.extra)
    with open(source, "rb") as file:
        return Survey(count, hashlib.file_digest(file, "sha256").hexdigest(), tuple(extra))


def read_rows(source: str, make: Callable[[Row], Made]) -> Generator[Made, None, None]:
    """One value per row of a file, made when it is asked for. Blank lines are skipped.

    Args:
        source: path, or "-" for stdin.
        make: from the row's object; raises InvalidInput if it does not like it.

    Raises:
        InvalidInput: "FILE:LINE: what is wrong"; in a list "FILE[INDEX]".
    """
    name = "stdin" if source == STANDARD else source
    with _opened(source) as file:
        try:
            for where, row in _listed(file) if _is_list(file) else _lines(file):
                try:
                    yield make(_object(row))
                except InvalidInput as error:
                    raise InvalidInput(f"{name}{where}: {error}") from error
        except _Unreadable as error:
            raise InvalidInput(f"{name}{error}") from error
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InvalidInput(f"{name}: damaged gzip data: {error}") from error


class _Unreadable(Exception):
    """A place in a file, and what is wrong there."""


def _is_list(file: BinaryIO) -> bool:
    head: bytes = file.peek(HEAD_BYTES)  # type: ignore[attr-defined]  # `_opened` gives files that have it
    return head[:HEAD_BYTES].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def _listed(file: BinaryIO) -> Iterator[tuple[str, object]]:
    rows = _json(file.read(), "")
    assert isinstance(rows, list)
    return ((f"[{index}]", row) for index, row in enumerate(rows))


def _lines(file: BinaryIO) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield f":{number}", _json(line, f":{number}")


class _Twice(Exception):
    """A key that an object has twice."""


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return an object; Python's own reader would keep the last of two values without a word."""
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(next(name for name in names if names.count(name) > 1))
    return row


_DECODER = json.JSONDecoder(object_pairs_hook=_once)


def _json(text: bytes, where: str) -> object:
    try:
        value: object = _DECODER.decode(text.decode("utf-8-sig"))
        if b"\\ud" in text or b"\\uD" in text:  # half of a surrogate pair is no text, and cannot be sent
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeDecodeError as error:
        raise _Unreadable(f"{where}: not UTF-8: {error.reason}") from error
    except UnicodeEncodeError as error:
        raise _Unreadable(f"{where}: a text holds a lone surrogate, which is not valid Unicode") from error
    except _Twice as error:
        raise _Unreadable(f"{where}: key `{error}` is there twice, and one of its values would be lost") from error
    except (ValueError, RecursionError) as error:
        raise _Unreadable(f"{where}: not JSON: {error}") from error


def _object(value: object) -> Row:
    if not isinstance(value, dict):
        raise InvalidInput(f"expected an object, got {type(value).__name__}")
    return value


def _stdin() -> AbstractContextManager[BinaryIO]:
    """Stdin under a reader of its own. Python ends in an abort if a thread still reads `sys.stdin` then."""
    try:
        return open(sys.stdin.fileno(), "rb", closefd=False)
    except OSError:  # no file: whoever runs this in a process of theirs gave something else
        return nullcontext(sys.stdin.buffer)


@contextmanager
def _opened(source: str) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed where it begins as gzip does."""
    with _stdin() if source == STANDARD else open(source, "rb") as raw:
        file = raw if hasattr(raw, "peek") else io.BufferedReader(cast("io.RawIOBase", raw))
        packed = file.peek(len(GZIP_MAGIC))[: len(GZIP_MAGIC)] == GZIP_MAGIC
        yield cast("BinaryIO", gzip.GzipFile(fileobj=file) if packed else file)
