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
from assay_training.data.sft_examples import SftExample
from assay_training.models.batches import autocast, token_batches
from assay_training.models.policy import Policy


@dataclass(frozen=True, slots=True)
class PolicyOutputs:
    """What policy and value head say of the tokens of some completions, end to end; fp32 `[t]`.

    Attributes:
        logprobs: of the policy, at the temperature of sampling.
        values: what is still to come before each token.
    """

    logprobs: torch.Tensor
    values: torch.Tensor


@dataclass(frozen=True, slots=True)
class OldPolicyOutputs(PolicyOutputs):
    """The same of one completion before anything is learned from it, without gradient.

    Attributes:
        entropies: of the distribution that each token is from, in nats; fp32 `[t]`.
    """

    entropies: torch.Tensor

    def to(self, device: torch.device | str) -> "OldPolicyOutputs":
        """The same, there."""
        return OldPolicyOutputs(self.logprobs.to(device), self.values.to(device), self.entropies.to(device))


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

    def forward(self, examples: Sequence[SftExample], settings: Adam) -> PolicyOutputs:
        """With gradients, of the target tokens of all examples."""
        logits, targets, hidden = self._logits(examples, settings)
        return PolicyOutputs(-cross_entropy(logits, targets, reduction="none"), self._values(hidden))

    def old_outputs(self, examples: Sequence[SftExample], settings: Adam) -> list[OldPolicyOutputs]:
        """Of each example, in the micro-batches in which they are trained."""
        found: list[OldPolicyOutputs] = []
        for part, counts in _parts(examples, settings):
            with torch.no_grad():
                logits, targets, hidden = self._logits(part, settings)
                logprobs = -cross_entropy(logits, targets, reduction="none")
                entropies = torch.logsumexp(logits, -1) - (logits.softmax(-1) * logits).sum(-1)
                columns = [torch.split(of, counts) for of in (logprobs, self._values(hidden), entropies)]
            found += [OldPolicyOutputs(*of) for of in zip(*columns, strict=True)]
        return found

    def reference_logprobs(self, examples: Sequence[SftExample], settings: Adam) -> list[torch.Tensor]:
        """Of each example's target tokens under the policy before its adapter."""
        found: list[torch.Tensor] = []
        for part, counts in _parts(examples, settings):
            with torch.no_grad(), self.policy.reference():
                logits, targets, _ = self._logits(part, settings)
                found += torch.split(-cross_entropy(logits, targets, reduction="none"), counts)
        return found

    def _logits(
        self, examples: Sequence[SftExample], settings: Adam
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """At the temperature of sampling, of what each target token is one of; their ids; and what they come from."""
        with autocast(self.policy.device, settings):
            hidden, targets = self.policy.before_targets(examples)
        # In fp32 whatever is below it computes in: logits in bf16 would be half of the distance to the engine.
        return self.policy.head(hidden.float()) / self._temperature, targets, hidden

    def _values(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.value_head(hidden.float()).squeeze(-1))


def _parts(examples: Sequence[SftExample], settings: Adam) -> Iterator[tuple[list[SftExample], list[int]]]:
    """The micro-batches, and how many target tokens each of their examples has."""
    for indices in token_batches(range(len(examples)), examples, settings.micro_batch_tokens):
        part = [examples[i] for i in indices]
        yield part, [example.targets for example in part]
