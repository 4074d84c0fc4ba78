"""Read the rows of an input file: JSON lines or one JSON list, plain or compressed with gzip, or Parquet."""

import gzip
import hashlib
import io
import sys
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar, cast

from assay_client._json import Unreadable, parse_json
from assay_client._parquet import find_converted, is_parquet, read_parquet
from assay_client.errors import InvalidInput
from assay_client.messages import Completion, Message, read_messages
from assay_client.types import ID_KEYS, ITEM_KEYS, Item

STANDARD = "-"  # stdin
RANK_KEYS = frozenset({"prompt", "messages", "completions", "id"})
GZIP_MAGIC = b"\x1f\x8b"
# First bytes of files that are not read as JSON, and what to do with them.
FOREIGN = {
    b"\x28\xb5\x2f\xfd": "is packed by zstd; send it unpacked: zstd -dc FILE | assay … -",
    b"BZh": "is packed by bzip2; send it unpacked: bzip2 -dc FILE | assay … -",
    b"\xfd7zXZ": "is packed by xz; send it unpacked: xz -dc FILE | assay … -",
    b"PK\x03\x04": "is a zip archive; unpack it",
    b"PAR1": "is Parquet, which is read only from a file that is called ….parquet; rename it",
}
HEAD_BYTES = 4096  # the start of a file, which shows whether it is a list
CHARS_OF_TOKEN = 4  # of English text, about
SENT_ID_CHARS = 256  # the longest id that the service accepts
SHOWN_KEYS = 8  # the most keys of a row that an error message lists

Row = dict[str, object]
Made = TypeVar("Made")


class HasExtra(Protocol):
    """A row that keeps the keys that are not part of its request."""

    @property
    def extra(self) -> Row: ...


ExtraT = TypeVar("ExtraT", bound=HasExtra)


@dataclass(frozen=True)
class Fields:
    """The keys of a row that hold the parts of an item."""

    prompt: str = "prompt"
    completion: str = "completion"
    messages: str = "messages"


@dataclass(frozen=True)
class ItemRow:
    """One item, the other keys of its row, and its id, which may be any JSON value.

    An `id` that is text is that of the item, too. Another one is not sent, because the service accepts only text.
    """

    item: Item
    extra: Row
    id: object = None

    @classmethod
    def of(cls, row: Row, fields: Fields, *, token_ids: bool = False) -> "ItemRow":
        """Read the item of a row whose keys `fields` names.

        `prompt_ids` and `completion_ids` are copied with the other keys, unless `token_ids` says that the request will
        name their tokenizer.

        Raises:
            InvalidInput: the row has no item, or its item is malformed.
        """
        names = dict(
            zip((fields.prompt, fields.completion, fields.messages), ("prompt", "completion", "messages"), strict=True)
        )
        names |= {key: key for key in ITEM_KEYS - set(names.values()) if token_ids or key not in ID_KEYS}
        known, extra = _split_row(row, names)
        if not known.keys() & {"completion", "messages", *ID_KEYS}:
            if row.keys() & {*ID_KEYS}:
                raise InvalidInput("the item is token ids; name their tokenizer with --tokenizer-sha256")
            raise InvalidInput(
                f"an item has `{fields.prompt}` with `{fields.completion}`, or `{fields.messages}`; this row has "
                f"{_list_keys(row)}. Name its fields with --prompt-field and --completion-field, or --messages-field"
            )
        return cls(Item.of(known), extra, row.get("id"))

    @property
    def chars(self) -> int:
        """Return the number of characters of the item, a measure of its work."""
        item = self.item
        if item.prompt_ids is not None:
            return CHARS_OF_TOKEN * sum(len(ids) for ids in (item.prompt_ids, item.completion_ids) if ids is not None)
        messages = [*(item.messages or ()), *(() if isinstance(item.prompt, str | None) else item.prompt)]
        texts = [item.prompt, item.completion, *(cast("Message", message).content for message in messages)]
        return sum(len(text) for text in texts if isinstance(text, str))


@dataclass(frozen=True)
class RankRow:
    """One prompt with its completions, and the other keys of its row."""

    prompt: str | tuple[Message, ...]
    completions: tuple[Completion | Row, ...]
    id: object
    extra: Row

    @classmethod
    def of(cls, row: Row) -> "RankRow":
        """Read the prompt and completions of a row; `messages` instead of `prompt` hold the prompt as a chat.

        Raises:
            InvalidInput: the row does not have exactly one of them, or a part is malformed.
        """
        known, extra = _split_row(row, {key: key for key in RANK_KEYS})
        if ("prompt" in known) == ("messages" in known):
            raise InvalidInput(
                f"a row must have exactly one of `prompt` and `messages`; this row has {_list_keys(row)}"
            )
        name = "prompt" if "prompt" in known else "messages"
        prompt, completions = known[name], known.get("completions")
        if not isinstance(completions, list) or not completions:
            raise InvalidInput("`completions` must be a list with at least one completion")
        if name == "messages" or not isinstance(prompt, str):
            prompt = read_messages(prompt, name)
        for completion in completions:
            # Only checked here, so that a malformed completion is found before anything is sent.
            given = completion if isinstance(completion, dict) else {"completion": completion}
            if own := given.keys() & {"prompt", "messages"}:
                raise InvalidInput(f"a completion must not have its own `{min(own)}`; the row has it for all of them")
            Item.of({"prompt": "", **given})
        return cls(prompt, tuple(completions), row.get("id"), extra)

    @property
    def chars(self) -> int:
        """Return the number of characters of the completions, a measure of their work."""
        return sum(
            len(str(completion)) for completion in self.completions
        )  # the service computes a prompt once for all


def _split_row(row: Row, names: dict[str, str]) -> tuple[Row, Row]:
    """Return the parts of a row that `names` knows, under their names in wire form, and the other keys.

    Raises:
        InvalidInput: a part is not text although JSON could show it as text, such as bytes or a date.
    """
    known = {name: row[key] for key, name in names.items() if key in row}
    check_parts(row, (key for key, name in names.items() if name != "id"))
    # Not turned into text: 7 and "7" would be one id. The row of the output has the id, whether or not it is sent.
    if not isinstance(id := known.get("id", ""), str | None) or len(id or "") > SENT_ID_CHARS:
        del known["id"]
    return known, {key: value for key, value in row.items() if key not in names}


def check_parts(row: Row, keys: Iterable[str]) -> None:
    """Check that the keys of a row hold values that JSON has.

    Raises:
        InvalidInput: a value has another type, such as bytes.
    """
    for key in keys:
        if (kind := find_converted(row.get(key))) is not None:
            raise InvalidInput(f"`{key}` holds a value of type {kind}, and must be text; convert the column to strings")


def _list_keys(row: Row) -> str:
    shown = ", ".join(f"`{key}`" for key in [*row][:SHOWN_KEYS])
    return (shown or "no key") + ", …" * (len(row) > SHOWN_KEYS)


@dataclass(frozen=True)
class Survey:
    """The content of a file: its number of rows, its SHA-256, and the keys that are copied to the output."""

    rows: int
    sha256: str
    extra: tuple[str, ...]


def survey(source: str, make: Callable[[Row], ExtraT]) -> Survey | None:
    """Read a whole file before any of it is sent, so that a malformed row costs nothing; None for stdin and pipes.

    Raises:
        InvalidInput: a row is malformed, as in `read_rows`.
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
    """Yield one value per row of a file, made when it is needed. Blank lines are skipped.

    Args:
        source: the path of the file, or "-" for stdin.
        make: the function that makes a value from a row's object; it raises InvalidInput if the row is malformed.

    Raises:
        InvalidInput: a row is malformed; the message begins with "FILE:LINE: ", or in a list and in Parquet with
            "FILE[INDEX]: ".
    """
    name = "stdin" if source == STANDARD else source
    with closing(read_parquet(source) if is_parquet(source) else _read_json(source, name)) as rows:
        for where, row in rows:
            try:
                yield make(_check_object(row))
            except InvalidInput as error:
                raise InvalidInput(f"{name}{where}: {error}") from error


def _read_json(source: str, name: str) -> Generator[tuple[str, object], None, None]:
    with _open_source(source) as file:
        try:
            yield from _read_list(file) if _is_list(file) else _read_lines(file)
        except Unreadable as error:
            raise InvalidInput(f"{name}{error}") from error
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InvalidInput(f"{name}: damaged gzip data: {error}") from error


def _is_list(file: BinaryIO) -> bool:
    # Looked at and not read, because a pipe cannot go back.
    head: bytes = file.peek(HEAD_BYTES)  # type: ignore[attr-defined]  # `_open_source` returns files that have it
    return head[:HEAD_BYTES].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def _read_list(file: BinaryIO) -> Iterator[tuple[str, object]]:
    # A JSON list has no separate lines, so that it is read as a whole.
    rows = parse_json(file.read(), "")
    assert isinstance(rows, list)
    return ((f"[{index}]", row) for index, row in enumerate(rows))


def _read_lines(file: BinaryIO) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield f":{number}", parse_json(line, f":{number}")


def _check_object(value: object) -> Row:
    if not isinstance(value, dict):
        raise InvalidInput(f"expected an object, got {type(value).__name__}")
    return value


def _open_stdin() -> AbstractContextManager[BinaryIO]:
    """Open stdin a second time: Python aborts at its end if a thread still reads `sys.stdin`."""
    try:
        return open(sys.stdin.fileno(), "rb", closefd=False)
    except OSError:  # not a file: the caller of this process replaced `sys.stdin`
        return nullcontext(sys.stdin.buffer)


@contextmanager
def _open_source(source: str) -> Iterator[BinaryIO]:
    """Open a file for its bytes, which are decompressed if it begins as gzip does."""
    with _open_stdin() if source == STANDARD else open(source, "rb") as raw:
        file = raw if hasattr(raw, "peek") else io.BufferedReader(cast("io.RawIOBase", raw))
        packed = file.peek(len(GZIP_MAGIC))[: len(GZIP_MAGIC)] == GZIP_MAGIC
        if advice := next((text for magic, text in FOREIGN.items() if file.peek(8).startswith(magic)), None):
            raise InvalidInput(f"{'stdin' if source == STANDARD else source}: {advice}")
        yield cast("BinaryIO", gzip.GzipFile(fileobj=file) if packed else file)
