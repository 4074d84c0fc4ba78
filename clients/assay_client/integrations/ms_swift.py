"""Give ms-swift's GRPO reward classes (`orms`) that score over HTTP.

Source: https://github.com/modelscope/ms-swift, `swift/rewards/orm.py` and `swift/rl_core` (4.6.0). ms-swift takes None
for a reward, and adds the rewards of a completion up with `nansum`: without any other reward the None becomes a 0. So a
completion without a score raises an error, or has the reward that the user declares (`floor`).
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar, cast

from assay_client.client import AsyncRewardClient, RewardClient
from assay_client.errors import InvalidInput, ItemsFailed
from assay_client.integrations._rows import Rows, build_rows, convert_finish_reason
from assay_client.integrations._scorer import TOTAL, AsyncScorer, ScoreOptions, Scorer, check_floor, read_rewards
from assay_client.integrations._single import open_async_client, open_client
from assay_client.types import FinishReason, ScoreResult, Truncation


class AssayORM:
    """A reward function; `make_orm` and `make_signal_orms` make subclasses of it for `orms`."""

    scorer: Scorer
    signal: str | None
    floor: float | None

    def __init__(self, args: object = None, **_: object) -> None:
        self.args = args

    def __call__(self, completions: Sequence[str], **columns: object) -> list[float]:
        """Return the reward of each completion.

        Args:
            completions: the completions.
            columns: columns of the batch; `messages` and `finish_reason` or `is_truncated` are read.

        Raises:
            ItemsFailed: a completion cannot be scored, and no floor is declared.
            AssayError: the request failed.
        """
        result = self.scorer.score(read_batch(completions, columns), self.signal or TOTAL, _read_step(columns))
        return fill_rewards(result, self.signal, self.floor)


class AsyncAssayORM:
    """The `AssayORM` for asyncio, which ms-swift runs beside other such functions."""

    scorer: AsyncScorer
    signal: str | None
    floor: float | None

    def __init__(self, args: object = None, **_: object) -> None:
        self.args = args

    async def __call__(self, completions: Sequence[str], **columns: object) -> list[float]:
        """Return the reward of each completion; see `AssayORM`."""
        result = await self.scorer.score(read_batch(completions, columns), self.signal or TOTAL, _read_step(columns))
        return fill_rewards(result, self.signal, self.floor)


OrmT = TypeVar("OrmT", AssayORM, AsyncAssayORM)


def make_orm(
    client: RewardClient | str,
    *,
    model: str | None = None,
    weights: Mapping[str, float] | None = None,
    truncation: Truncation | None = None,
    floor: float | None = None,
) -> type[AssayORM]:
    """Return a class for `orms`, whose reward is the score of a signal or blend.

    Args:
        client: the client, or the address of the service.
        model: the signal or blend to score by; the server's default if neither this nor `weights` is given.
        weights: the weight of each signal by name, instead of a model.
        truncation: "error" or "prompt_left"; the server's default if None.
        floor: the reward of a completion that cannot be scored; without it, one ends the run.

    Raises:
        InvalidInput: `floor` is not a finite number.
    """
    scorer = Scorer(open_client(client), ScoreOptions(model, weights, truncation))
    return _make(AssayORM, scorer, model or TOTAL, None, floor)


def make_async_orm(
    client: AsyncRewardClient | str,
    *,
    model: str | None = None,
    weights: Mapping[str, float] | None = None,
    truncation: Truncation | None = None,
    floor: float | None = None,
) -> type[AsyncAssayORM]:
    """Return the class of `make_orm` for asyncio."""
    scorer = AsyncScorer(open_async_client(client), ScoreOptions(model, weights, truncation))
    return _make(AsyncAssayORM, scorer, model or TOTAL, None, floor)


def make_signal_orms(
    client: RewardClient | str,
    signals: Sequence[str],
    *,
    truncation: Truncation | None = None,
    floor: float | None = None,
) -> dict[str, type[AssayORM]]:
    """Return one class for each signal, by name, all from one request per batch: `orms.update(...)`.

    The other arguments are those of `make_orm`; a completion without scores has the floor as the reward of each signal.

    Raises:
        InvalidInput: `signals` are not different names, or `floor` is not a finite number.
    """
    scorer = Scorer(open_client(client), ScoreOptions.for_signals(signals, truncation), signals)
    return {signal: _make(AssayORM, scorer, signal, signal, floor) for signal in signals}


def _make(base: type[OrmT], scorer: object, name: str, signal: str | None, floor: float | None) -> type[OrmT]:
    # ms-swift logs a reward under the name of its class: two classes of one name would share their metrics.
    return type(name, (base,), {"scorer": scorer, "signal": signal, "floor": check_floor(floor)})


def fill_rewards(result: ScoreResult, signal: str | None, floor: float | None) -> list[float]:
    """Return the reward of each row, the floor for a row that could not be scored.

    Raises:
        ItemsFailed: a row could not be scored, and there is no floor.
    """
    if result.failures and floor is None:
        error = ItemsFailed(tuple(row.to_exception() for row in result.failures), len(result.data))
        error.add_note("ms-swift would make a 0 of a missing reward; pass `floor=` to give such completions a reward")
        raise error
    return [cast("float", reward) for reward in read_rewards(result, signal, floor)]  # no row is without one


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
