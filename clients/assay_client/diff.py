"""Score a file by two services, and say what a change of model or version does to scores, ranks and picks."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from assay_client._difference import WORST_ROWS, Difference, Shape
from assay_client._drive import LOOKS, Pace, run_in_order, run_off_loop
from assay_client._rows import Fields, ItemRow, RankRow, Row, read_rows, survey
from assay_client.bulk import OWN_NAMES, SILENCE_S, is_alive
from assay_client.client import AsyncRewardClient
from assay_client.errors import InvalidInput
from assay_client.types import Item, ScoreResult, Truncation

Answers: TypeAlias = tuple[ScoreResult, ScoreResult]


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
            InvalidInput: the row has none of these forms, or a part is malformed.
        """
        if {"chosen", "rejected"} <= row.keys():
            known = {fields.prompt, "chosen", "rejected", "id"}
            extra = {key: value for key, value in row.items() if key not in known}
            items = tuple(_read_side(row.get(fields.prompt), row[name], name) for name in ("chosen", "rejected"))
            return cls("pair", items, row.get("id"), extra)
        if "completions" in row:
            group = RankRow.of(row)
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
        begins = given[0] == prompt if isinstance(prompt, str) else side[: len(list(prompt))] == prompt  # type: ignore[call-overload]
        if not begins:
            raise InvalidInput(f"`{name}` is a conversation that does not begin with the prompt")
    return Item.of({"messages": side})


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
        silence_s: the seconds without an answer or a sign of life of either service after which both are given up.
        on_rows: a function that is called with the number of rows scored and of all rows (None if not known).

    Raises:
        InvalidInput: a row is malformed; if the file can be read twice, it is raised before anything is sent.
        FingerprintChanged: a service was replaced during the run.
        Timeout: a service was silent for `silence_s`.
    """
    options: dict[str, Any] = {"weights": weights, "truncation": truncation, "tokenizer_sha256": tokenizer_sha256}
    make = partial(DiffRow.of, fields=fields, token_ids=tokenizer_sha256 is not None)
    known = await run_off_loop(partial(survey, source, make))
    total = known.rows if known else None
    found, pace = Difference(urls, most), Pace(min(old.chunk_size, new.chunk_size))
    whole = read_rows(source, make)

    async def ask(part: list[DiffRow]) -> Answers:
        items = [item for row in part for item in row.items]
        try:
            async with asyncio.TaskGroup() as group:  # a failure of one service stops the other's request
                first, second = (
                    group.create_task(client.score(items, model=model, **options))
                    for client, model in zip((old, new), models, strict=True)
                )
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return first.result(), second.result()

    def put(part: list[DiffRow], answers: Answers) -> None:
        for side, answer in zip(found.sides, answers, strict=True):
            side.learn(answer)
        before, after = (iter(answer.data) for answer in answers)
        for row in part:
            found.add(row.shape, row.id, [next(before) for _ in row.items], [next(after) for _ in row.items])
        on_rows(found.rows, total)

    async def is_each_alive() -> bool:
        alive = await asyncio.gather(*(is_alive(client, silence_s / LOOKS) for client in (old, new)))
        return all(alive)

    on_rows(0, total)
    try:
        await run_in_order(
            take=lambda: pace.take(whole),
            ask=lambda part: pace.measure(part, ask(part)),
            put=put,
            alive=is_each_alive,
            width=min(old.max_concurrency, new.max_concurrency),
            silence_s=silence_s,
        )
    finally:
        with suppress(ValueError):  # the generator cannot be closed while a thread waits for rows in it
            whole.close()
    return found
