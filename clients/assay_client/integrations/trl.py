"""Give TRL's GRPO, RLOO and AsyncGRPO trainers reward functions that score over HTTP ([TRL]).

A completion without a score has the reward None, which these trainers skip: it is not a 0. Beside other reward
functions it counts as 0 in their sum, unless a `floor` takes its place. Errors of the whole request are raised.

The signatures are those of TRL 1.16; older releases pass fewer arguments.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Protocol, TypeAlias

from assay_client.client import AsyncRewardClient, RewardClient
from assay_client.errors import InvalidInput
from assay_client.integrations._rows import Rows, build_rows, build_token_rows, read_finish_reason, read_token_ids
from assay_client.integrations._scorer import TOTAL, AsyncScorer, ScoreOptions, Scorer, check_floor, read_rewards
from assay_client.integrations._single import open_async_client, open_client
from assay_client.types import Score, ScoreResult, Truncation

Rewards: TypeAlias = list[float | None]
LogExtra: TypeAlias = Callable[[str, list[object]], None]
LogMetric: TypeAlias = Callable[[str, float], None]
AsyncReward: TypeAlias = Callable[..., Awaitable[Rewards]]


class TrainerState(Protocol):
    """The part of `transformers.TrainerState` that is read."""

    global_step: int


class RewardFunction:
    """One reward function; TRL calls it, and logs it under `__name__`.

    It can be pickled, as AsyncGRPO requires, if its client can. `scorer.fingerprint` is that of the first answer.
    """

    def __init__(
        self,
        scorer: Scorer,
        eos_token_ids: frozenset[int],
        name: str,
        signal: str | None,
        floor: float | None = None,
    ) -> None:
        self.scorer = scorer
        self._floor = check_floor(floor)
        self.__name__ = name
        self._eos_token_ids = eos_token_ids
        self._signal = signal

    def __call__(
        self,
        prompts: Sequence[object],
        completions: Sequence[object],
        completion_ids: Sequence[Sequence[int]],
        trainer_state: TrainerState | None = None,
        log_extra: LogExtra | None = None,
        log_metric: LogMetric | None = None,
        prompt_ids: Sequence[Sequence[int]] | None = None,
        **_columns: object,
    ) -> Rewards:
        """Return the reward of each completion, the floor or None for one that could not be scored.

        Args:
            prompts: the prompt of each completion, as text or messages.
            completions: the completions, as text or messages.
            completion_ids: the token ids of each completion; the last one decides the finish reason.
            trainer_state: the trainer's state; AsyncGRPO passes none.
            log_extra: the function that adds a column to the table of completions.
            log_metric: the function that logs a number.
            prompt_ids: the column of the data set with the token ids of each prompt, for `tokenizer_sha256`.
            _columns: the other columns of the data set, which are ignored.

        Raises:
            AssayError: the request failed, or the service has another model than at the first call.
        """
        if self.scorer.options.tokenizer_sha256 is not None:
            rows = _build_token_rows(prompt_ids, completion_ids)
        else:
            rows = _build_rows(prompts, completions, completion_ids, self._eos_token_ids)
        result = self.scorer.score(rows, self._signal or TOTAL, _read_step(trainer_state))
        if self._signal in (None, self.scorer.readers[0]):  # one of the functions that share the result logs it
            log_result(result, log_extra, log_metric)
        return read_rewards(result, self._signal, self._floor)


def reward_function(
    client: RewardClient | str,
    *,
    eos_token_id: int | Collection[int],
    model: str | None = None,
    weights: Mapping[str, float] | None = None,
    truncation: Truncation | None = None,
    tokenizer_sha256: str | None = None,
    floor: float | None = None,
) -> RewardFunction:
    """Return a reward function whose reward is the score of a signal or blend.

    The logit of each signal of a blend is logged beside it.

    Args:
        client: the client, or the address of the service.
        eos_token_id: the end token of the policy, or all of them. A completion that ends with another token was cut
            off. Name the padding token too if generation may end with it.
        model: the signal or blend to score by; the server's default if neither this nor `weights` is given.
        weights: the weight of each signal by name, instead of a model.
        truncation: "error" or "prompt_left"; the server's default if None.
        tokenizer_sha256: the hash of the policy's `tokenizer.json`. `completion_ids` and the data set's column
            `prompt_ids` are then scored instead of text.
        floor: the reward of a completion that cannot be scored; None leaves it without one.

    Raises:
        InvalidInput: `eos_token_id` is not a token id, or `floor` is not a finite number.
    """
    scorer = Scorer(open_client(client), ScoreOptions(model, weights, truncation, tokenizer_sha256))
    return RewardFunction(scorer, read_token_ids(eos_token_id), TOTAL if model is None else model, None, floor)


def signal_rewards(
    client: RewardClient | str,
    signals: Sequence[str],
    *,
    eos_token_id: int | Collection[int],
    truncation: Truncation | None = None,
    tokenizer_sha256: str | None = None,
    floor: float | None = None,
) -> list[RewardFunction]:
    """Return one reward function for each signal, all from one request per step.

    The trainer then sees every signal, and normalizes or weights each one: pass `reward_weights`, and for GDPO
    `multi_objective_aggregation="normalize_then_sum"`. Pass all of the functions to one trainer.

    Args:
        client: the client, or the address of the service.
        signals: the names of the signals; each function's reward is the logit of one of them.
        eos_token_id: the end token or tokens of the policy, as in `reward_function`.
        truncation: "error" or "prompt_left"; the server's default if None.
        tokenizer_sha256: the hash of the policy's `tokenizer.json`. `completion_ids` and the data set's column
            `prompt_ids` are then scored instead of text.
        floor: the reward of a completion that cannot be scored, for each signal; None leaves it without one.

    Raises:
        InvalidInput: `signals` are not different names, `eos_token_id` is not a token id, or `floor` is not a finite
            number.
    """
    scorer = Scorer(open_client(client), ScoreOptions.for_signals(signals, truncation, tokenizer_sha256), signals)
    ids = read_token_ids(eos_token_id)
    return [RewardFunction(scorer, ids, name, name, floor) for name in signals]


def async_reward_function(
    client: AsyncRewardClient | str,
    *,
    eos_token_id: int | Collection[int],
    model: str | None = None,
    weights: Mapping[str, float] | None = None,
    truncation: Truncation | None = None,
    tokenizer_sha256: str | None = None,
    floor: float | None = None,
) -> AsyncReward:
    """Return a coroutine function with the rewards of `reward_function`.

    TRL runs it beside other coroutine functions. It cannot be pickled: AsyncGRPO takes `reward_function`, which it runs
    in threads.
    """
    scorer = AsyncScorer(open_async_client(client), ScoreOptions(model, weights, truncation, tokenizer_sha256))
    return _build_async(scorer, read_token_ids(eos_token_id), TOTAL if model is None else model, None, floor)


def async_signal_rewards(
    client: AsyncRewardClient | str,
    signals: Sequence[str],
    *,
    eos_token_id: int | Collection[int],
    truncation: Truncation | None = None,
    tokenizer_sha256: str | None = None,
    floor: float | None = None,
) -> list[AsyncReward]:
    """Return one coroutine function for each signal, with the rewards of `signal_rewards`."""
    scorer = AsyncScorer(
        open_async_client(client), ScoreOptions.for_signals(signals, truncation, tokenizer_sha256), signals
    )
    ids = read_token_ids(eos_token_id)
    return [_build_async(scorer, ids, name, name, floor) for name in signals]


def _build_async(
    scorer: AsyncScorer, eos_token_ids: frozenset[int], name: str, signal: str | None, floor: float | None
) -> AsyncReward:
    check_floor(floor)

    # A function and no object: releases of TRL before 1.16 take an object whose `__call__` is async for synchronous.
    async def reward(
        prompts: Sequence[object],
        completions: Sequence[object],
        completion_ids: Sequence[Sequence[int]],
        trainer_state: TrainerState | None = None,
        log_extra: LogExtra | None = None,
        log_metric: LogMetric | None = None,
        prompt_ids: Sequence[Sequence[int]] | None = None,
        **_columns: object,
    ) -> Rewards:
        """Return the reward of each completion; see `RewardFunction.__call__`."""
        if scorer.options.tokenizer_sha256 is not None:
            rows = _build_token_rows(prompt_ids, completion_ids)
        else:
            rows = _build_rows(prompts, completions, completion_ids, eos_token_ids)
        result = await scorer.score(rows, signal or TOTAL, _read_step(trainer_state))
        if signal in (None, scorer.readers[0]):
            log_result(result, log_extra, log_metric)
        return read_rewards(result, signal, floor)

    reward.__name__ = reward.__qualname__ = name
    return reward


def log_result(result: ScoreResult, log_extra: LogExtra | None, log_metric: LogMetric | None) -> None:
    """Log the logit of each signal, as a column and as a mean, and the fraction of completions without a score."""
    scored = [row for row in result.data if isinstance(row, Score)]
    names = sorted(result.provenance.signals)
    for name in names:
        if log_extra is not None:
            logits = [row.signals[name].logit if isinstance(row, Score) else None for row in result.data]
            log_extra(f"assay/{name}", [*logits])
        if log_metric is not None and scored:
            log_metric(f"assay/{name}", sum(row.signals[name].logit for row in scored) / len(scored))
    if log_metric is not None:
        log_metric("assay/unscored", 1 - len(scored) / max(len(result.data), 1))


def _build_rows(
    prompts: Sequence[object],
    completions: Sequence[object],
    completion_ids: Sequence[Sequence[int]],
    eos_token_ids: frozenset[int],
) -> Rows:
    return build_rows(prompts, completions, [read_finish_reason(ids, eos_token_ids) for ids in completion_ids])


def _build_token_rows(prompt_ids: Sequence[Sequence[int]] | None, completion_ids: Sequence[Sequence[int]]) -> Rows:
    if prompt_ids is None:
        raise InvalidInput(
            "`tokenizer_sha256` needs the token ids of prompts, which TRL does not pass: add a column `prompt_ids` to "
            "the data set, or remove `tokenizer_sha256`"
        )
    return build_token_rows(prompt_ids, completion_ids)


def _read_step(state: TrainerState | None) -> int | None:
    return None if state is None else state.global_step
