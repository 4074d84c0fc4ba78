"""Hold the networks of PPO: a policy with an adapter, a value head on its trunk, and the base as reference policy.

Legend: `t` target tokens (those of the completions) of some examples, end to end; `V` vocabulary size, `H` hidden
size. Log-probabilities and entropies are those at the sampling temperature, in nats.

Dropout is never used. The log-probabilities π_old after a rollout and those of the first update are therefore the same
function of the weights. The first ratio π / π_old is 1 up to rounding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from assay_training.config.model import Adam, Lora
from assay_training.data.sft_examples import SftExample
from assay_training.models.batches import autocast, cut_token_batches
from assay_training.models.policy import Policy


@dataclass(frozen=True, slots=True)
class PolicyOutputs:
    """The outputs of policy and value head at the target tokens of some examples, end to end.

    Attributes:
        logprobs: log-probabilities of the target tokens, fp32 `[t]`, in nats.
        values: expected return before each target token, fp32 `[t]`.
    """

    logprobs: Float[Tensor, " t"]
    values: Float[Tensor, " t"]


@dataclass(frozen=True, slots=True)
class OldPolicyOutputs(PolicyOutputs):
    """The outputs at the tokens of one completion before it is learned from, without gradient.

    Attributes:
        entropies: entropies of the distributions that the tokens were sampled from, fp32 `[t]`, in nats.
    """

    entropies: Float[Tensor, " t"]

    def to(self, device: torch.device | str) -> "OldPolicyOutputs":
        """Move the outputs to a device."""
        return OldPolicyOutputs(self.logprobs.to(device), self.values.to(device), self.entropies.to(device))


class Actor:
    """The policy, its value head and its reference policy, which share the weights of one base.

    Args:
        base: directory of the checkpoint to start from.
        lora: configuration of the adapter, which is the identity at first.
        device: device of all weights.
        temperature: sampling temperature; logits are divided by it.

    Attributes:
        policy: policy with its adapter.
        value_head: linear layer `[1, H]`, fp32; zero at first, so that untrained values do not distort advantages.
    """

    def __init__(self, base: Path, lora: Lora, device: torch.device, temperature: float) -> None:
        self.policy = Policy(base, lora, device)
        self.value_head = nn.Linear(self.policy.hidden_size, 1, device=device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self._temperature = temperature

    def parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters: those of the adapter, then those of the value head."""
        return [*self.policy.parameters(), *self.value_head.parameters()]

    def forward(self, examples: Sequence[SftExample], settings: Adam) -> PolicyOutputs:
        """Return log-probabilities and values at the target tokens of all examples, with gradients.

        Args:
            examples: prompts with completions; together they fit one forward pass.
            settings: settings that name the compute dtype.

        Returns:
            The outputs, fp32 `[t]`, in the order of the examples.
        """
        logits, targets, hidden = self._compute_logits(examples, settings)
        return PolicyOutputs(-cross_entropy(logits, targets, reduction="none"), self._compute_values(hidden))

    def compute_old_outputs(self, examples: Sequence[SftExample], settings: Adam) -> list[OldPolicyOutputs]:
        """Return log π_old, V_old and the entropies at the target tokens of each example, without gradient.

        Args:
            examples: prompts with completions, of any number.
            settings: settings that name the compute dtype and the tokens of a micro-batch.

        Returns:
            One item for each example, fp32 `[n]` for its n target tokens.
        """
        outputs: list[OldPolicyOutputs] = []
        for part, counts in _cut_micro_batches(examples, settings):
            with torch.no_grad():
                logits, targets, hidden = self._compute_logits(part, settings)
                logprobs = -cross_entropy(logits, targets, reduction="none")
                # H(p) = log Z − Σ p · logit, which needs no logarithm of a probability that may be 0.
                entropies = torch.logsumexp(logits, -1) - (logits.softmax(-1) * logits).sum(-1)
                columns = [
                    torch.split(column, counts) for column in (logprobs, self._compute_values(hidden), entropies)
                ]
            outputs += [OldPolicyOutputs(*row) for row in zip(*columns, strict=True)]
        return outputs

    def compute_reference_logprobs(self, examples: Sequence[SftExample], settings: Adam) -> list[Float[Tensor, " _"]]:
        """Return log π_ref of each example's target tokens: the policy's with its adapter disabled.

        Args:
            examples: prompts with completions, of any number.
            settings: settings that name the compute dtype and the tokens of a micro-batch.

        Returns:
            One tensor for each example, fp32 `[n]` for its n target tokens, in nats, without gradient.
        """
        logprobs: list[Tensor] = []
        for part, counts in _cut_micro_batches(examples, settings):
            # Without its adapter the policy is the base, so the reference needs no weights of its own.
            with torch.no_grad(), self.policy.disable_adapter():
                logits, targets, _ = self._compute_logits(part, settings)
                logprobs += torch.split(-cross_entropy(logits, targets, reduction="none"), counts)
        return logprobs

    def _compute_logits(
        self, examples: Sequence[SftExample], settings: Adam
    ) -> tuple[Float[Tensor, "t V"], Int64[Tensor, " t"], Float[Tensor, "t H"]]:
        """Return logits over temperature fp32 `[t, V]`, target ids int64 `[t]`, and hidden states `[t, H]`."""
        with autocast(self.policy.device, settings):
            hidden, targets = self.policy.compute_target_states(examples)
        # Always in fp32: with bf16 logits, half of the mismatch between trainer and engine would be their rounding.
        return self.policy.compute_logits(hidden.float()) / self._temperature, targets, hidden

    def _compute_values(self, hidden: Float[Tensor, "t H"]) -> Float[Tensor, " t"]:
        """Return the values, fp32 `[t]`, from hidden states `[t, H]`."""
        return torch.as_tensor(self.value_head(hidden.float()).squeeze(-1))


def _cut_micro_batches(examples: Sequence[SftExample], settings: Adam) -> Iterator[tuple[list[SftExample], list[int]]]:
    """Yield micro-batches with the number of target tokens of each example; they are bounded as in training."""
    for indices in cut_token_batches(range(len(examples)), examples, settings.micro_batch_tokens):
        part = [examples[i] for i in indices]
        yield part, [example.targets for example in part]
