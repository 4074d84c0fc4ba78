"""transformers as it is used today: padded batches, sorted by length, one by one."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.contenders.base import Contender
from benchmarks.workloads import Group


class Padded(Contender):
    """Batches of `size`, padded to their longest, in the order they come or sorted by length."""

    def __init__(
        self, model: Path, size: int = 32, *, by_length: bool = False, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        super().__init__(model)
        self._size = size
        self._by_length = by_length
        self._tokenizer: Any = AutoTokenizer.from_pretrained(model, padding_side="right")
        self._model: Any = AutoModelForSequenceClassification.from_pretrained(model, dtype=dtype).eval()

    def score(self, groups: list[Group]) -> list[float]:
        """Template, tokenize, sort if asked, pad, forward."""
        texts = [self._text(group.prompt, completion) for group in groups for completion in group.completions]
        ids = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i])) if self._by_length else list(range(len(ids)))
        logits = [0.0] * len(ids)
        with torch.inference_mode():
            for start in range(0, len(order), self._size):
                part = order[start : start + self._size]
                batch = self._tokenizer.pad({"input_ids": [ids[i] for i in part]}, return_tensors="pt")
                for i, logit in zip(part, self._model(**batch).logits[:, 0].tolist(), strict=True):
                    logits[i] = logit
        return logits

    def _text(self, prompt: str, completion: str) -> str:
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False))


class OneByOne(Padded):
    """A forward for each item: nothing is padded and nothing is shared."""

    def __init__(self, model: Path) -> None:
        super().__init__(model, 1)
