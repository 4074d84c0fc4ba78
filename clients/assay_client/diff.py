"""Score a file by two services, and say what a change of model or version does to scores, ranks and picks."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from assay_client._difference import NO_PICKS, WORST_ROWS, Difference, Shape, Side
from assay_client._drive import LOOKS, drive_rows, run_off_loop
from assay_client._file_run import is_alive
from assay_client._isolation import Scored, Send, score_apart
from assay_client._rows import Fields, ItemRow, RankRow, Row, Survey, check_parts, read_rows, survey
from assay_client.bulk import OWN_NAMES, SILENCE_S
from assay_client.client import AsyncRewardClient
from assay_client.errors import AssayError, InvalidInput, Timeout
from assay_client.types import Item, ScoreResult, Truncation

Answers: TypeAlias = tuple[Scored, Scored]


@dataclass(frozen=True)
class DiffRow:
    """The completions of one row: one of an item, several of a group, or the chosen and the rejected of a pair."""

    shape: Shape
    items: tuple[Item, ...]
    id: object
    extra: Row

    @classmethod
    def of(cls, row: Row, fields: Fields, *, token_ids: bool = False) -> "DiffRow":
        """Read a row with `chosen` and `rejected`, with `completions`, or with one item, as `ItemRow.of` reads it.

        Raises:
            InvalidInput: the row has none of these forms or several, or a part is malformed.
        """
        row = {key: value for key, value in row.items() if value is not None}  # tables write a missing key as null
        # Both of them: a row with `chosen` alone is of another form, or malformed.
        pair = {"chosen", "rejected"} <= row.keys()
        forms = [name for name in ("completions", fields.completion) if name in row]
        if len(forms) + pair > 1:
            found = " and ".join(f"`{name}`" for name in [*(("chosen",) if pair else ()), *forms])
            raise InvalidInput(f"the row has {found}, so that it could be read in several ways; remove one of them")
        if pair:
            check_parts(row, (fields.prompt, "chosen", "rejected"))
            known = {fields.prompt, "chosen", "rejected", "id"}
            extra = {key: value for key, value in row.items() if key not in known}
            items = tuple(_read_side(row.get(fields.prompt), row[name], name) for name in ("chosen", "rejected"))
            return cls("pair", items, row.get("id"), extra)
        if "completions" in row:
            group = RankRow.of(row)
            # A completion may have fields of its own, such as `finish_reason`.
            given = (one if isinstance(one, dict) else {"completion": one} for one in group.completions)
            items = tuple(Item.of({"prompt": group.prompt, **one}) for one in given)
            return cls("group", items, row.get("id"), group.extra)
        single = ItemRow.of(row, fields, token_ids=token_ids)
        return cls("item", (single.item,), row.get("id"), single.extra)

    @property
    def chars(self) -> int:
        """Return the number of characters of all items, a measure of their work."""
        return sum(ItemRow(item, {}).chars for item in self.items)


def _read_side(prompt: object, side: object, name: str) -> Item:
    """Return the item of one side of a pair.

    Data sets write a side as text, as one assistant message, or as the whole conversation, with or without the prompt.

    Raises:
        InvalidInput: the side is malformed, or its conversation does not begin with the prompt.
    """
    if not isinstance(side, list) or (len(side) == 1 and prompt is not None):
        return Item.of({"prompt": prompt, "completion": side})
    if prompt is not None:
        given = [message.get("content") if isinstance(message, dict) else None for message in side]
        # An empty prompt would begin every conversation.
        chat = isinstance(prompt, list) and bool(prompt) and side[: len(prompt)] == prompt
        if given[:1] != [prompt] and not chat:
            raise InvalidInput(f"`{name}` is a conversation that does not begin with the prompt")
    return Item.of({"messages": side})


@dataclass
class _Services:
    """Both services, which are asked at the same time; an error has a note that names the service.

    Attributes:
        sides: the names of the services, the old one first.
        ask_each: the function of each service that scores items.
        look_at_each: the function of each service that returns whether it shows a sign of life.
        silent: the service that showed no sign of life when it was last looked for; None if both did.
    """

    sides: tuple[Side, Side]
    ask_each: Sequence[Send]
    look_at_each: Sequence[Callable[[], Awaitable[bool]]]
    silent: Side | None = None

    async def ask(self, part: list[DiffRow]) -> Answers:
        """Return the scores of all items of some rows by both services.

        Raises:
            AssayError: the first error of a service, whose name it has.
        """
        items = [item for row in part for item in row.items]
        try:
            async with asyncio.TaskGroup() as group:  # a failure of one service stops the other's request
                first, second = (
                    group.create_task(score_apart(items, partial(_name_errors, side, ask)))
                    for side, ask in zip(self.sides, self.ask_each, strict=True)
                )
        except BaseExceptionGroup as failures:
            # One error, as everywhere else; the other service was stopped and has none to report.
            raise failures.exceptions[0] from None
        return first.result(), second.result()

    async def are_alive(self) -> bool:
        """Return whether both services show a sign of life."""
        # At once, because a silent service takes all the time that it is given.
        alive = await asyncio.gather(*(look() for look in self.look_at_each))
        self.silent = next((side for side, lives in zip(self.sides, alive, strict=True) if not lives), None)
        return self.silent is None

    @contextmanager
    def name_silent(self) -> Iterator[None]:
        """Name the service that showed no sign of life in a Timeout that does not name one."""
        try:
            yield
        except Timeout as error:
            if self.silent is not None and not hasattr(error, "__notes__"):
                error.add_note(self.silent.describe())
            raise


async def _name_errors(side: Side, ask: Send, items: Sequence[Item]) -> ScoreResult:
    """Return an answer whose fingerprint is that of earlier ones; errors name the service."""
    try:
        result = await ask(items)
        side.learn(result)
    except AssayError as error:
        if not isinstance(error, InvalidInput):  # that is about an option, and nothing was sent
            error.add_note(side.describe())
        raise
    return result


async def diff_file(  # noqa: PLR0913  # options of one command, all by name
    old: AsyncRewardClient,
    new: AsyncRewardClient,
    source: str,
    *,
    urls: tuple[str, str] = ("old", "new"),
    models: tuple[str | None, str | None] = (None, None),
    weights: Mapping[str, float] | None = None,
    truncation: Truncation | None = None,
    tokenizer_sha256: str | None = None,
    fields: Fields = OWN_NAMES,
    most: int = WORST_ROWS,
    needs_picks: bool = False,
    silence_s: float = SILENCE_S,
    on_rows: Callable[[int, int | None], None] = lambda done, total: None,
) -> Difference:
    """Score every row of a file by both services at the same time, and return what differs.

    Memory does not grow with the file, except for a JSON list. Rows are those of `score`, those of `rank`
    (`completions`), and pairs (`chosen` and `rejected`); a file may mix them.

    Args:
        old: the client of the first service.
        new: the client of the second service.
        source: the path of the input, or "-".
        urls: the names of both services in the result.
        models: the signal or blend of each service; None for its default.
        weights: the weight of each signal by name, instead of models.
        truncation: "error" or "prompt_left"; as in `RewardClient.score`.
        tokenizer_sha256: the hash of the `tokenizer.json` that gave the token ids of the rows, if they are to be read.
        fields: the keys that hold the parts of an item.
        most: the most examples of each kind.
        needs_picks: whether the file must have a row with several completions.
        silence_s: the seconds without an answer or a sign of life of either service after which both are given up.
        on_rows: a function that is called with the number of rows scored and of all rows (None if not known).

    Raises:
        InvalidInput: a row is malformed, or `needs_picks` and no row has several completions. If the file can be read
            twice, it is raised before anything is sent.
        FingerprintChanged: a service was replaced during the run.
        Timeout: a service was silent for `silence_s`.
        AssayError: a service failed or refused a request. This error and the two above name the service in a note.
    """
    options: dict[str, Any] = {"weights": weights, "truncation": truncation, "tokenizer_sha256": tokenizer_sha256}
    make = partial(DiffRow.of, fields=fields, token_ids=tokenizer_sha256 is not None)
    known = await run_off_loop(partial(_survey_rows, source, make, needs_picks=needs_picks))
    total, extra = (known.rows, known.extra) if known else (None, ())
    # Counted while rows arrive, so that memory does not grow with the file.
    found = Difference(urls, most, extra=extra)
    sends = [partial(client.score, model=model, **options) for client, model in zip((old, new), models, strict=True)]
    services = _Services(found.sides, sends, [partial(is_alive, client, silence_s / LOOKS) for client in (old, new)])

    def put(part: list[DiffRow], answers: Answers) -> None:
        _count_rows(found, part, answers)
        on_rows(found.rows, total)

    on_rows(0, total)
    with services.name_silent():
        await drive_rows(
            read_rows(source, make),
            start=0,
            most_rows=min(old.chunk_size, new.chunk_size),
            ask=services.ask,
            put=put,
            alive=services.are_alive,
            width=min(old.max_concurrency, new.max_concurrency),
            silence_s=silence_s,
        )
    return found


def _count_rows(found: Difference, part: list[DiffRow], answers: Answers) -> None:
    """Count some rows by what both services answered for all their items."""
    before, after = (iter(answer.data) for answer in answers)
    for row in part:
        found.add(row.shape, row.id, [next(before) for _ in row.items], [next(after) for _ in row.items])


def _survey_rows(source: str, make: Callable[[Row], DiffRow], *, needs_picks: bool) -> Survey | None:
    """Read the whole file; the arguments and errors are those of `diff_file`."""
    shapes = set[Shape]()

    def make_known(row: Row) -> DiffRow:
        made = make(row)
        shapes.add(made.shape)
        return made

    known = survey(source, make_known)
    if needs_picks and shapes == {"item"}:
        raise InvalidInput(NO_PICKS)
    return known
