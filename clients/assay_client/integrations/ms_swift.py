"""Give ms-swift's GRPO reward classes (`orms`) that score over HTTP.

Source: https://github.com/modelscope/ms-swift, `swift/rewards/orm.py` and `swift/rl_core` (4.6.0). A completion
without a score has the reward None, which ms-swift leaves out: it is not a 0.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

from assay_client.client import AsyncRewardClient, RewardClient
from assay_client.errors import InvalidInput
from assay_client.integrations._rows import Rows, build_rows, convert_finish_reason
from assay_client.integrations._scorer import TOTAL, AsyncScorer, ScoreOptions, Scorer, read_rewards
from assay_client.integrations._single import open_async_client, open_client
from assay_client.types import FinishReason, Truncation

Rewards = list[float | None]


class AssayORM:
    """A reward function; `make_orm` and `make_signal_orms` make subclasses of it for `orms`."""

    scorer: Scorer
    signal: str | None

    def __init__(self, args: object = None, **_: object) -> None:
        self.args = args

    def __call__(self, completions: Sequence[str], **columns: object) -> Rewards:
        """Return the reward of each completion, None for one that could not be scored.

        Args:
            completions: the completions.
            columns: columns of the batch; `messages` and `finish_reason` or `is_truncated` are read.
        """
        result = self.scorer.score(read_batch(completions, columns), self.signal or TOTAL, _read_step(columns))
        return read_rewards(result, self.signal)


class AsyncAssayORM:
    """The `AssayORM` for asyncio, which ms-swift runs beside other such functions."""

    scorer: AsyncScorer
    signal: str | None

    def __init__(self, args: object = None, **_: object) -> None:
        self.args = args

    async def __call__(self, completions: Sequence[str], **columns: object) -> Rewards:
        """Return the reward of each completion; see `AssayORM`."""
        result = await self.scorer.score(read_batch(completions, columns), self.signal or TOTAL, _read_step(columns))
        return read_rewards(result, self.signal)


OrmT = TypeVar("OrmT", AssayORM, AsyncAssayORM)


def make_orm(
    client: RewardClient | str,
    *,
    model: str | None = None,
    weights: Mapping[str, float] | None = None,
    truncation: Truncation | None = None,
) -> type[AssayORM]:
    """Return a class for `orms`, whose reward is the score of a signal or blend.

    Args:
        client: the client, or the address of the service.
        model: the signal or blend to score by; the server's default if neither this nor `weights` is given.
        weights: the weight of each signal by name, instead of a model.
        truncation: "error" or "prompt_left"; the server's default if None.
    """
    scorer = Scorer(open_client(client), ScoreOptions(model, weights, truncation))
    return _make(AssayORM, scorer, model or TOTAL, None)


def make_async_orm(
    client: AsyncRewardClient | str,
    *,
    model: str | None = None,
    weights: Mapping[str, float] | None = None,
    truncation: Truncation | None = None,
) -> type[AsyncAssayORM]:
    """Return the class of `make_orm` for asyncio."""
    scorer = AsyncScorer(open_async_client(client), ScoreOptions(model, weights, truncation))
    return _make(AsyncAssayORM, scorer, model or TOTAL, None)


def make_signal_orms(
    client: RewardClient | str, signals: Sequence[str], *, truncation: Truncation | None = None
) -> dict[str, type[AssayORM]]:
    """Return one class for each signal, by name, all from one request per batch: `orms.update(...)`.

    Raises:
        InvalidInput: `signals` are not different names.
    """
    scorer = Scorer(open_client(client), ScoreOptions.for_signals(signals, truncation), signals)
    return {signal: _make(AssayORM, scorer, signal, signal) for signal in signals}


def _make(base: type[OrmT], scorer: object, name: str, signal: str | None) -> type[OrmT]:
    # ms-swift logs a reward under the name of its class: two classes of one name would share their metrics.
    return type(name, (base,), {"scorer": scorer, "signal": signal})


def read_batch(completions: Sequence[str], columns: Mapping[str, object]) -> Rows:
    """Return the rows of a batch: the last of each row's `messages` is its completion.

    Raises:
        InvalidInput: the batch has no `messages`.
    """
    messages = columns.get("messages")
    if not isinstance(messages, Sequence) or len(messages) != len(completions):
        raise InvalidInput(
            "the batch has no `messages` for each completion; this needs ms-swift's GRPO of 4.0 or newer"
        )
    prompts = [turns[:-1] for turns in messages]
    return build_rows(prompts, [turns[-1:] for turns in messages], _read_finish_reasons(len(messages), columns))


def _read_finish_reasons(count: int, columns: Mapping[str, object]) -> list[FinishReason | None]:
    truncated, reasons = columns.get("is_truncated"), columns.get("finish_reason")
    if isinstance(reasons, Sequence):
        return [convert_finish_reason(reason) for reason in reasons]
    if isinstance(truncated, Sequence):
        return ["length" if cut else "stop" for cut in truncated]
    return [None] * count


def _read_step(columns: Mapping[str, object]) -> Hashable | None:
    """Return what tells a batch from those of other steps: the trainer's step, or else the ids of its rollouts."""
    step = getattr(columns.get("trainer_state"), "global_step", None)
    if isinstance(step, int):
        return step
    ids = columns.get("request_id")  # Megatron on Ray passes no state; each rollout has an id of its own
    return tuple(map(str, ids)) if isinstance(ids, Sequence) and all(ids) else None
