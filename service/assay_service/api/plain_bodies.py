"""Read bodies in their plain form, which most requests have, without pydantic's schemas.

The plain form has texts, roles and few names. Whatever is read here is read by the schemas to the same values. All
other bodies, wrong ones among them, are left to the schemas, so that these remain the contract and explain all errors.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from msgspec import UNSET, Struct, UnsetType

from assay_service.scoring.item import FinishReason, Item, Message, Truncation

_MOST_ID, _MOST_ROLE = 256, 64  # characters, as in `schemas`
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class PlainBody:
    """What a plain body asks for.

    Attributes:
        items: items to score.
        ids: the id of each item, None where the client sent none.
        model: name of the signal or blend; None for the default.
        truncation: policy for prompts that are too long.
    """

    items: list[Item]
    ids: list[str | None]
    model: str | None
    truncation: Truncation = "error"


# A field that is set to null, or has no place here, makes the body one for the schemas.
class _Turn(Struct, forbid_unknown_fields=True, gc=False):
    role: str
    content: str


class _Entry(Struct, forbid_unknown_fields=True, gc=False):
    prompt: str | list[_Turn] | UnsetType = UNSET
    completion: str | UnsetType = UNSET
    messages: list[_Turn] | UnsetType = UNSET
    finish_reason: FinishReason | UnsetType = UNSET
    id: str | UnsetType = UNSET


class _Score(Struct, forbid_unknown_fields=True, gc=False):
    items: list[_Entry]
    model: str | UnsetType = UNSET
    truncation: Truncation | UnsetType = UNSET


class _Completion(Struct, forbid_unknown_fields=True, gc=False):
    completion: str
    finish_reason: FinishReason | UnsetType = UNSET
    id: str | UnsetType = UNSET


class _Rank(Struct, forbid_unknown_fields=True, gc=False):
    completions: list[str | _Completion]
    prompt: str | list[_Turn] | UnsetType = UNSET
    messages: list[_Turn] | UnsetType = UNSET
    model: str | UnsetType = UNSET


_decode_score = msgspec.json.Decoder(_Score).decode
_decode_rank = msgspec.json.Decoder(_Rank).decode


class _NotPlain(Exception):
    """The body is one for the schemas."""


def read_score(body: bytes) -> PlainBody | None:
    """Return what a body of `/v1/score` asks for; None for a body that is not plain, or wrong."""
    try:
        sent = _decode_score(body)
        items, ids, strings = [], [], 1
        for entry in sent.items:
            item, count = _read_entry(entry)
            items.append(item)
            ids.append(_read_id(entry.id))
            strings += count
        model = _read_name(sent.model)
        strings += 2 * (model is not None) + 2 * (sent.truncation is not UNSET)
    except (msgspec.MsgspecError, UnicodeDecodeError, _NotPlain):
        return None
    if _count_strings(body) != strings:
        return None
    return PlainBody(items, ids, model, "error" if sent.truncation is UNSET else sent.truncation)


def read_rank(body: bytes) -> PlainBody | None:
    """Return what a body of `/v1/rank` asks for; None for a body that is not plain, or wrong."""
    try:
        sent = _decode_rank(body)
        prompt = sent.messages if sent.prompt is UNSET else sent.prompt
        if prompt is UNSET or (sent.prompt is not UNSET and sent.messages is not UNSET):
            return None
        messages, count = _read_prompt(prompt)
        model, items, ids = _read_name(sent.model), [], []
        strings = 2 + count + 2 * (model is not None)
        for entry in sent.completions:
            text = entry if isinstance(entry, str) else entry.completion
            reason, item_id = (UNSET, None) if isinstance(entry, str) else (entry.finish_reason, _read_id(entry.id))
            items.append(Item((*messages, Message("assistant", text)), "stop" if reason is UNSET else reason))
            ids.append(item_id)
            if isinstance(entry, str):
                strings += 1
            else:
                strings += 2 + 2 * (reason is not UNSET) + 2 * (item_id is not None)
    except (msgspec.MsgspecError, UnicodeDecodeError, _NotPlain):
        return None
    return PlainBody(items, ids, model) if _count_strings(body) == strings else None


def _read_entry(entry: _Entry) -> tuple[Item, int]:
    """Return the item of an entry, and how many strings the entry has, with the names of its fields."""
    reason: FinishReason = "stop" if entry.finish_reason is UNSET else entry.finish_reason
    strings = 2 * (entry.finish_reason is not UNSET) + 2 * (entry.id is not UNSET)
    prompt, completion, messages = entry.prompt, entry.completion, entry.messages
    if messages is UNSET:
        if prompt is UNSET or completion is UNSET:
            raise _NotPlain
        turns, count = _read_prompt(prompt)
        return Item((*turns, Message("assistant", completion)), reason), strings + count + 3
    if prompt is not UNSET or completion is not UNSET or not messages or messages[-1].role != "assistant":
        raise _NotPlain
    turns, count = _read_prompt(messages)
    return Item(turns, reason), strings + count + 1


def _read_prompt(prompt: str | Sequence[_Turn]) -> tuple[tuple[Message, ...], int]:
    """Return the messages of a prompt, and how many strings it has."""
    if isinstance(prompt, str):
        return (Message("user", prompt),), 1
    if not all(0 < len(turn.role) <= _MOST_ROLE for turn in prompt):
        raise _NotPlain
    return tuple(Message(turn.role, turn.content) for turn in prompt), 4 * len(prompt)


def _read_id(sent: str | UnsetType) -> str | None:
    if sent is UNSET:
        return None
    if len(sent) > _MOST_ID:
        raise _NotPlain
    return sent


def _read_name(sent: str | UnsetType) -> str | None:
    if sent is UNSET:
        return None
    if not _NAME.fullmatch(sent):
        raise _NotPlain
    return sent


def _count_strings(body: bytes) -> int:
    """Return how many strings a JSON text has, keys included.

    msgspec keeps the last of two values of one key. The strings that it lost are then missing among those read.
    """
    quotes = body.count(b'"')
    if b"\\" in body:
        # Without pairs of backslashes, each one that is left escapes the next character.
        quotes -= body.replace(b"\\\\", b"").count(b'\\"')
    return quotes // 2
