"""What PPO trains: a policy with an adapter, and a value head on the same trunk; its reference is the policy without.

There is no dropout, so that the first look after a rollout and the first of its training are the same function.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from assay_training.config.model import Adam, Lora
from assay_training.examples import autocast, token_batches
from assay_training.policy import Policy
from assay_training.sft_examples import SftExample


@dataclass(frozen=True, slots=True)
class Look:
    """What the models say of the tokens of some completions, end to end; all fp32 `[t]`.

    Attributes:
        logprobs: of the policy, at the temperature of sampling.
        values: what is still to come before each token, by the value head.
        entropies: of the distribution that each token is from, in nats; without gradient.
    """

    logprobs: torch.Tensor
    values: torch.Tensor
    entropies: torch.Tensor

    def to(self, device: torch.device | str) -> "Look":
        """The same, there."""
        return Look(self.logprobs.to(device), self.values.to(device), self.entropies.to(device))


class Actor:
    """Policy, value head and reference in one.

    Args:
        base: the policy to start from.
        lora: its adapter, which is the identity at first.
        device: where to put it.
        temperature: that logits are divided by, as in sampling.

    Attributes:
        policy: with its adapter.
        value_head: fp32; zero at first, so that it says nothing before it has learned.
    """

    def __init__(self, base: Path, lora: Lora, device: torch.device, temperature: float) -> None:
        self.policy = Policy(base, lora, device)
        self.value_head = nn.Linear(self.policy.hidden_size, 1, device=device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self._temperature = temperature

    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [*self.policy.parameters(), *self.value_head.parameters()]

    def look(self, examples: Sequence[SftExample], settings: Adam) -> Look:
        """With gradients, of the target tokens of all examples."""
        with autocast(self.policy.device, settings):
            hidden, targets = self.policy.before_targets(examples)
            logits = self.policy.head(hidden)
        logits = logits.float() / self._temperature
        with torch.no_grad():
            entropies = torch.logsumexp(logits, -1) - (logits.softmax(-1) * logits).sum(-1)
        return Look(
            logprobs=-cross_entropy(logits, targets, reduction="none"),
            values=self.value_head(hidden.float()).squeeze(-1),
            entropies=entropies,
        )

    def look_at_all(self, examples: Sequence[SftExample], settings: Adam) -> list[Look]:
        """Of each example, without gradients, in the micro-batches in which they are trained."""
        return list(self._looks(examples, settings))

    def reference_logprobs(self, examples: Sequence[SftExample], settings: Adam) -> list[torch.Tensor]:
        """Of each example's target tokens under the policy before its adapter."""
        with self.policy.reference():
            return [look.logprobs for look in self._looks(examples, settings)]

    def _looks(self, examples: Sequence[SftExample], settings: Adam) -> Iterator[Look]:
        for part in token_batches(range(len(examples)), examples, settings.micro_batch_tokens):
            with torch.no_grad():
                look = self.look([examples[i] for i in part], settings)
            counts = [examples[i].targets for i in part]
            pieces = (torch.split(of, counts) for of in (look.logprobs, look.values, look.entropies))
            yield from (Look(*of) for of in zip(*pieces, strict=True))
