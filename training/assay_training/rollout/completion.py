"""Represent a sampled completion as token ids with the log-probabilities that the engine reported."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from assay_service.scoring.item import FinishReason

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled completion: token ids, never text, which might be tokenized differently again.

    Attributes:
        prompt: token ids of the prompt.
        ids: sampled token ids; an EOS that ended the completion is the last of them.
        logprobs: log-probabilities of `ids` in nats, as the engine sampled them, at its temperature.
        finish_reason: "stop" if the policy ended the completion by EOS, "length" if it was truncated.

    Raises:
        ValueError: the prompt or the completion is empty, or `logprobs` has another length than `ids`.
    """

    prompt: Ids
    ids: Ids
    logprobs: tuple[float, ...]
    finish_reason: FinishReason

    def __post_init__(self) -> None:
        if not self.prompt or not self.ids or len(self.ids) != len(self.logprobs):
            raise ValueError("a completion needs a prompt, at least one token, and one log-probability for each token")

    def text(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Decode the completion without the EOS that ended it.

        Control tokens inside it stay visible in the text, so that the service refuses the completion.
        """
        ids = self.ids[:-1] if self.finish_reason == "stop" else self.ids
        return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
