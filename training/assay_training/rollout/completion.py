"""What a policy said, as the engine that sampled it tells."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from assay_service.scoring.item import FinishReason

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """One sample. Token ids, never text that would have to be tokenised again.

    Attributes:
        prompt: ids that were continued.
        ids: that were sampled; the EOS that ended it is the last of them.
        logprobs: of `ids`, as the engine sampled them: at its temperature.
        finish_reason: "stop" if it ended by itself, "length" if it was cut off.
    """

    prompt: Ids
    ids: Ids
    logprobs: tuple[float, ...]
    finish_reason: FinishReason

    def __post_init__(self) -> None:
        if not self.prompt or not self.ids or len(self.ids) != len(self.logprobs):
            raise ValueError("a completion has a prompt, a token or more, and a log-probability for each")

    def text(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """What it says, without the EOS that ended it; control tokens inside it stay visible, and are refused."""
        ids = self.ids[:-1] if self.finish_reason == "stop" else self.ids
        return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
