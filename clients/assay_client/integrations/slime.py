"""Give slime a custom reward function, for `--custom-rm-path`, also with `--group-rm`.

Source: https://github.com/THUDM/slime, `slime/rollout/rm_hub` and `slime/utils/types.py` (624b824). slime has no value
for a missing reward, so that a sample that cannot be scored raises an error.
"""

from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, TypeAlias

from assay_client.client import AsyncRewardClient
from assay_client.errors import InvalidInput
from assay_client.integrations._rendered import append_end, require_parts, score_rendered_async
from assay_client.integrations._rows import Rows, build_rows, build_token_rows, read_end_tokens, split_end_token
from assay_client.integrations._scorer import AsyncScorer, ScoreOptions
from assay_client.integrations._single import open_async_client, read_parts, require_score
from assay_client.types import FinishReason

Reward: TypeAlias = float | dict[str, float]
TOTAL = "reward"

_FINISH: Mapping[str, FinishReason] = {"completed": "stop", "truncated": "length"}


def make_rm(
    client: AsyncRewardClient | str,
    *,
    end_token: str | Collection[str],
    model: str | None = None,
    parts: bool = False,
    tokenizer_sha256: str | None = None,
) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Return `async f(args, sample)`, which scores one sample, or a group of samples by one request.

    Prompts that are messages are sent as they are. Prompts that a template has rendered (`--apply-chat-template`) are
    read by the service: `compat.wires.openrlhf` of its configuration names the policy's template and the model.

    Args:
        client: the client, or the address of the service.
        end_token: the text of the policy's end token, such as "<|im_end|>", or all of them, that of the template first.
        model: the signal or blend to score by, for prompts that are messages; the server's default if None.
        parts: True returns a dictionary with the score as `reward` and the logit of each signal, for `--reward-key`.
        tokenizer_sha256: the hash of the policy's `tokenizer.json`. The token ids of the samples are then scored,
            whatever form their prompts have.

    Raises:
        InvalidInput: `end_token` is empty, or `tokenizer_sha256` is not a SHA-256.
    """
    tokens = read_end_tokens(end_token)
    scorer = AsyncScorer(open_async_client(client), ScoreOptions(model, tokenizer_sha256=tokenizer_sha256))

    async def score_samples(_args: object, samples: Any, **_: object) -> Any:
        """Return the reward of a sample, or those of a list of samples.

        Raises:
            InvalidInput: a sample was aborted, or has failed, or the group has both forms of prompts.
            ItemFailed: a completion cannot be scored.
            AssayError: the request failed.
        """
        group = samples if isinstance(samples, Sequence) else [samples]
        rewards = await _score(scorer, group, tokens, parts=parts)
        chosen: list[Reward] = [*rewards] if parts else [reward[TOTAL] for reward in rewards]
        return chosen if isinstance(samples, Sequence) else chosen[0]

    return score_samples


async def _score(
    scorer: AsyncScorer, samples: Sequence[Any], tokens: tuple[str, ...], *, parts: bool
) -> list[dict[str, float]]:
    reasons = [_read_finish_reason(sample) for sample in samples]
    if scorer.options.tokenizer_sha256 is not None:
        return await _score_rows(scorer, _build_token_rows(samples))
    rendered = [isinstance(sample.prompt, str) for sample in samples]
    if any(rendered) and not all(rendered):
        raise InvalidInput("the group has prompts as text and as messages; they are scored by different requests")
    if samples and all(rendered):
        queries = [
            sample.prompt + append_end(sample.response, reason, tokens)
            for sample, reason in zip(samples, reasons, strict=True)
        ]
        scores = await score_rendered_async(scorer.client, queries, [sample.prompt for sample in samples])
        columns = {**require_parts(scores), TOTAL: scores.rewards} if parts else {TOTAL: scores.rewards}
        return [{name: column[index] for name, column in columns.items()} for index in range(len(samples))]
    texts = [split_end_token(sample.response, tokens)[0] for sample in samples]
    return await _score_rows(scorer, build_rows([sample.prompt for sample in samples], texts, reasons))


async def _score_rows(scorer: AsyncScorer, rows: Rows) -> list[dict[str, float]]:
    scores = [require_score(row) for row in (await scorer.score(rows)).data]
    return [{**read_parts(score), TOTAL: score.score} for score in scores]


def _build_token_rows(samples: Sequence[Any]) -> Rows:
    """Build rows of `sample.tokens`, the ids of prompt and response, of which `response_length` are the response's."""
    starts = [len(sample.tokens) - sample.response_length for sample in samples]
    if not all(start > 0 for start in starts):
        raise InvalidInput("a sample has no `tokens` of its prompt; remove `tokenizer_sha256` to score its text")
    pairs = [(sample.tokens[:start], sample.tokens[start:]) for sample, start in zip(samples, starts, strict=True)]
    return build_token_rows([prompt for prompt, _ in pairs], [completion for _, completion in pairs])


def _read_finish_reason(sample: Any) -> FinishReason:
    status = getattr(sample.status, "value", sample.status)
    if status not in _FINISH:
        raise InvalidInput(f"a sample with the status {status!r} has no completion that could be scored")
    return _FINISH[status]
