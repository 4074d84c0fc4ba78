"""Give AReaL's RLVR workflow a reward function that scores over HTTP.

Source: https://github.com/inclusionAI/AReaL, `areal/api/reward_api.py` (1.0.4). AReaL runs it in a pool of processes.
It makes a reward of 0 of a call that takes 15 seconds, and also of any `TimeoutError`. So this function ends earlier,
and raises errors of other classes, which AReaL raises again after its last try.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

from assay_client.client import RewardClient
from assay_client.errors import InvalidInput, TransportError
from assay_client.integrations._rendered import append_end, score_rendered
from assay_client.integrations._rows import build_rows, build_token_rows, read_end_tokens, split_end_token
from assay_client.integrations._scorer import ScoreOptions, Scorer
from assay_client.integrations._service import Service, read_service
from assay_client.integrations._single import score_single

# AReaL's own limit is 15 s. The rest is for starting a process and reading the answer.
MAX_DEADLINE_S = 13.0


@dataclass(frozen=True)
class AssayReward:
    """A reward function that can be pickled; copies in one process share their connections.

    Attributes:
        service: the addresses and the API key of the service.
        end_tokens: the texts of the policy's end tokens, that of the template first.
        model: the signal or blend to score by; the server's default if None.
        deadline_s: the time limit of one call in seconds, with its retries.
        messages_key: the column of the data set that holds the prompt as messages.
        tokenizer_sha256: the hash of the policy's `tokenizer.json`, with which token ids are scored.
    """

    service: Service
    end_tokens: tuple[str, ...]
    model: str | None = None
    deadline_s: float = 12.0
    messages_key: str = "messages"
    tokenizer_sha256: str | None = None

    def __call__(
        self,
        prompt: str,
        completions: str,
        prompt_ids: Sequence[int],
        completion_ids: Sequence[int],
        /,  # a data set may have columns of these names
        **row: object,
    ) -> float:
        """Return the score of one completion.

        Args:
            prompt: the prompt as the policy's template renders it. It is read only if the row has no messages, and then
                by the template and the model that the service's `compat.wires.openrlhf` names.
            completions: the completion, decoded with special tokens.
            prompt_ids: the token ids of the prompt, which are scored if `tokenizer_sha256` is given.
            completion_ids: the token ids of the completion, as `prompt_ids`.
            row: the columns of the data set.

        Raises:
            ItemFailed: the completion cannot be scored.
            TransportError: the service did not answer in time.
            AssayError: the request failed otherwise.
        """
        messages = row.get(self.messages_key)
        scorer = _open(self.service, ScoreOptions(self.model, tokenizer_sha256=self.tokenizer_sha256), self.deadline_s)
        try:
            if self.tokenizer_sha256 is not None:
                return score_single(scorer, build_token_rows([prompt_ids], [completion_ids])).score
            text, finish_reason = split_end_token(completions, self.end_tokens)
            if messages is None:
                query = prompt + append_end(text, finish_reason, self.end_tokens)
                return score_rendered(scorer.client, [query], [prompt]).rewards[0]
            return score_single(scorer, build_rows([messages], [text], [finish_reason])).score
        except TimeoutError as error:
            late = TransportError(f"the service did not answer within {self.deadline_s:g} s: {error.args[0]}")
            late.request_id = getattr(error, "request_id", None)
            raise late from None


def make_reward_fn(
    url: str | Sequence[str],
    *,
    end_token: str | Collection[str],
    api_key_file: str | None = None,
    model: str | None = None,
    deadline_s: float = 12.0,
    messages_key: str = "messages",
    tokenizer_sha256: str | None = None,
) -> Callable[..., float]:
    """Return a reward function for `RLVRWorkflow(reward_fn=...)`.

    Args:
        url: the address of the service, or a list of addresses.
        end_token: the text of the policy's end token, such as "<|im_end|>", or all of them, that of the template first.
            A completion that ends otherwise was cut off.
        api_key_file: the path of a file with the API key, which is read now and pickled with the function.
        model: the signal or blend to score by; the server's default if None.
        deadline_s: the time limit of one call in seconds, at most 13: AReaL makes a 0 of a call that takes 15.
        messages_key: the column of the data set that holds the prompt as messages.
        tokenizer_sha256: the hash of the policy's `tokenizer.json`. The token ids are then scored, and neither messages
            nor text are read.

    Raises:
        InvalidInput: `end_token` is empty, `deadline_s` is out of range, or another argument has another form.
    """
    if not 0 < deadline_s <= MAX_DEADLINE_S:
        raise InvalidInput(f"`deadline_s` must be above 0 and at most {MAX_DEADLINE_S:g}, because AReaL waits 15 s")
    service = read_service({"url": url, "api_key_file": api_key_file})
    ScoreOptions(model, tokenizer_sha256=tokenizer_sha256)  # checked here, before it reaches another process
    return AssayReward(service, read_end_tokens(end_token), model, deadline_s, messages_key, tokenizer_sha256)


@lru_cache
def _open(service: Service, options: ScoreOptions, deadline_s: float) -> Scorer:
    return Scorer(RewardClient(**service.to_arguments(), timeout_s=deadline_s, deadline_s=deadline_s), options)
