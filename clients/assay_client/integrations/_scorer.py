"""Score the rows of a trainer with one request for all reward functions that read them."""

import hashlib
import json
import logging
import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

from assay_client._protocol import check_sha256
from assay_client.client import AsyncRewardClient, RewardClient
from assay_client.errors import FingerprintChanged, InvalidInput
from assay_client.integrations._rows import Rows
from assay_client.integrations._shared import SharedAnswers
from assay_client.types import Item, Score, ScoreResult, Truncation

logger = logging.getLogger("assay_client.integrations")

ClientT = TypeVar("ClientT", RewardClient, AsyncRewardClient)
TOTAL = "reward"  # the reader of the score, where the readers are not signals


@dataclass(frozen=True)
class ScoreOptions:
    """What rows are scored by: a `model`, or the `weights` of signals; see `RewardClient.score`.

    With `tokenizer_sha256` the rows are token ids, as `build_token_rows` makes them.

    Raises:
        InvalidInput: `tokenizer_sha256` is not a SHA-256.
    """

    model: str | None = None
    weights: Mapping[str, float] | None = None
    truncation: Truncation | None = None
    tokenizer_sha256: str | None = None

    def __post_init__(self) -> None:
        if self.tokenizer_sha256 is not None:
            check_sha256(self.tokenizer_sha256)  # when the reward is made, and not at the end of the first rollout

    def to_arguments(self) -> dict[str, Any]:
        """Return the arguments of `RewardClient.score` besides the items."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def for_signals(
        cls, signals: Collection[str], truncation: Truncation | None = None, tokenizer_sha256: str | None = None
    ) -> "ScoreOptions":
        """Return options whose answer has every one of the signals; its score, their sum, is not used.

        Raises:
            InvalidInput: there is no signal, or one is named twice.
        """
        if isinstance(signals, str) or not signals or len(set(signals)) != len(signals):
            raise InvalidInput("`signals` must be a list of different names of signals")
        return cls(None, dict.fromkeys(signals, 1.0), truncation, tokenizer_sha256)


class _BaseScorer(Generic[ClientT]):
    """Score rows for one or several reward functions, which share each answer.

    The first answer's fingerprint is kept. Rewards of two different models must not be mixed in one run, so an answer
    with another fingerprint raises `FingerprintChanged`. It can be pickled if its client can.

    Args:
        client: the client of the service.
        options: the model or the weights that the rows are scored by.
        readers: the names of the reward functions that read each answer.
    """

    def __init__(self, client: ClientT, options: ScoreOptions, readers: Sequence[str] = (TOTAL,)) -> None:
        self.client: ClientT = client
        self.options = options
        self.readers = tuple(readers)
        self.fingerprint: str | None = None
        self._shared = SharedAnswers[ScoreResult](len(self.readers))

    def _read(self, rows: Rows, answer: ScoreResult) -> ScoreResult:
        """Return one outcome for each row, and log failures once: trainers only report that a reward is missing."""
        result = rows.place(answer)
        if result.failures:
            first = result.failures[0]
            logger.warning(
                "%d of %d completions have no reward; the first is row %d: %s: %s",
                len(result.failures),
                len(result.data),
                first.index,
                first.error.code,
                first.error.message,
            )
        if self.fingerprint is None:
            self.fingerprint = result.fingerprint
        if result.fingerprint != self.fingerprint:
            raise FingerprintChanged(self.fingerprint, result.fingerprint)
        return result


class Scorer(_BaseScorer[RewardClient]):
    """A scorer for synchronous reward functions, in one thread or in several."""

    def score(self, rows: Rows, reader: str = TOTAL, step: Hashable | None = None) -> ScoreResult:
        """Return one outcome for each row; readers of equal rows share one request.

        Args:
            rows: the rows, as `build_rows` returns them.
            reader: the name of the reward function that reads the result.
            step: the trainer's step, or another value that identifies it, if it is known; answers of other steps are
                dropped.

        Raises:
            FingerprintChanged: the model is no longer that of the first answer.
            AssayError: what `RewardClient.score` raises.
        """

        def ask() -> ScoreResult:
            return self._read(rows, self.client.score(rows.items, **self.options.to_arguments()))

        return self._shared.get(reader, compute_key(rows), ask, step)


class AsyncScorer(_BaseScorer[AsyncRewardClient]):
    """A scorer for reward functions that are coroutines, in one event loop or in several."""

    async def score(self, rows: Rows, reader: str = TOTAL, step: Hashable | None = None) -> ScoreResult:
        """Return one outcome for each row; see `Scorer.score`."""

        async def ask() -> ScoreResult:
            return self._read(rows, await self.client.score(rows.items, **self.options.to_arguments()))

        return await self._shared.get_async(reader, compute_key(rows), ask, step)


def compute_key(rows: Rows) -> bytes:
    """Return the SHA-256 of all that is sent about the rows; equal rows have equal keys."""
    sent = [entry.to_wire() if isinstance(entry, Item) else entry.message for entry in rows.entries]
    # `repr` for values that have no JSON form: sending them fails with a message of its own.
    return hashlib.sha256(json.dumps(sent, sort_keys=True, default=repr).encode()).digest()


def check_floor(floor: float | None) -> float | None:
    """Return the declared reward of completions without a score; None if none is declared.

    Raises:
        InvalidInput: it is not a finite number.
    """
    if floor is not None and (isinstance(floor, bool) or not math.isfinite(floor)):
        raise InvalidInput(f"`floor` must be a finite number, not {floor!r}")
    return floor


def read_rewards(result: ScoreResult, signal: str | None = None, floor: float | None = None) -> list[float | None]:
    """Return the reward of each row, the floor for a row that could not be scored.

    Args:
        result: the outcomes of the rows.
        signal: the signal whose logit is the reward; None for the score of the whole model or blend.
        floor: the reward of a row that could not be scored; None leaves it without one.
    """
    return [_read_score(row, signal) if isinstance(row, Score) else floor for row in result.data]


def _read_score(row: Score, signal: str | None) -> float:
    return row.score if signal is None else row.signals[signal].logit
