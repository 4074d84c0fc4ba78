"""Compute mixtures of experts so that the output of a token does not depend on the tokens beside it.

How many tokens an expert computes depends on the whole row, and a matrix product may depend on that count. So each
expert becomes two linear layers, which the back ends then make independent of their number of rows. The outputs of a
token's experts are added in the order of its routing, not in the order in which the experts are computed.
"""

from typing import Any

import torch
from torch import nn

from assay_service.scoring.layout import STEP_TOKENS


class Expert(nn.Module):
    """The two products of one expert.

    Args:
        gate_up: weight of gate and up projection, `[2 I, H]`.
        down: weight of the down projection, `[H, I]`.
    """

    def __init__(self, gate_up: torch.Tensor, down: torch.Tensor) -> None:
        super().__init__()
        self.gate_up: Any = _make_linear(gate_up)
        self.down: Any = _make_linear(down)


class Experts(nn.Module):
    """All experts of a layer.

    Attributes:
        experts: the experts.
        act_fn: activation of the gate.
        step: the rows of an expert are filled up to a multiple of this.
    """

    experts: nn.ModuleList
    act_fn: nn.Module
    step = STEP_TOKENS

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Return the weighted sum of each token's experts, `[T, H]` in the dtype of the hidden states.

        Args:
            hidden_states: hidden states, `[T, H]`.
            top_k_index: index of the experts of each token, int64 `[T, k]`.
            top_k_weights: weights of these experts, `[T, k]`.
        """
        outputs = hidden_states.new_zeros(*top_k_index.shape, hidden_states.shape[-1], dtype=torch.float32)
        for index in torch.unique(top_k_index).tolist():
            token, place = torch.where(top_k_index == index)
            outputs[token, place] = self._compute(self.experts[index], hidden_states[token]).float()
        outputs *= top_k_weights[..., None].float()
        total = outputs[:, 0]
        for rank in range(1, outputs.shape[1]):  # a sum over an axis may depend on the number of rows
            total = total + outputs[:, rank]
        return total.to(hidden_states.dtype)

    def combine(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """Return the inner states of an expert, `[n, I]`, from both halves of its first product."""
        return torch.as_tensor(self.act_fn(gate) * up)

    def _compute(self, expert: Any, rows: torch.Tensor) -> torch.Tensor:  # noqa: ANN401 - nn.ModuleList has no types
        """Return the output of an expert, `[n, H]`."""
        fill = rows.new_zeros(-len(rows) % self.step, rows.shape[1])
        gate, up = expert.gate_up(torch.cat([rows, fill])).chunk(2, dim=-1)
        return torch.as_tensor(expert.down(self.combine(gate, up))[: len(rows)])


class NativeExperts(Experts):
    """All experts of a layer on the C++ kernels, whose rows are independent for any number of rows."""

    step = 1
    gelu: bool

    def combine(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """Return the inner states of an expert, `[n, I]`, from both halves of its first product."""
        inner: torch.Tensor = torch.ops.assay.gate(gate.contiguous(), up.contiguous(), self.gelu)
        return inner


def use_kernels(experts: Experts, *, gelu: bool) -> None:
    """Let experts combine gate and up projection on the C++ kernels, in place.

    Args:
        experts: experts of a layer, whose linear layers are packed for the kernels.
        gelu: whether the activation of the gate is the tanh form of GELU, else SiLU.
    """
    experts.__class__ = NativeExperts
    experts.gelu = gelu  # type: ignore[assignment]


class _Router(nn.Module):
    """The choice of the experts of each token."""

    linear: Any
    top_k: int
    norm_topk_prob: bool

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the logits of all experts, `[T, experts]`, and weights and indices of the chosen ones, `[T, k]`."""
        logits = self.linear(hidden_states)
        weights, indices = logits.softmax(dim=-1, dtype=torch.float32).topk(self.top_k, dim=-1)
        if self.norm_topk_prob:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return logits, weights.to(logits.dtype), indices


def split_experts(base: nn.Module) -> None:
    """Turn the experts of a base into linear layers, and its routers with them, in place; others are left alone.

    The weights are not copied. The base cannot be saved afterwards.
    """
    for module in list(base.modules()):
        layer: Any = module
        kind = type(layer).__name__
        if kind == "Qwen3MoeExperts":
            pairs = zip(layer.gate_up_proj.detach(), layer.down_proj.detach(), strict=True)
            layer.experts = nn.ModuleList(Expert(*pair) for pair in pairs)
            del layer.gate_up_proj, layer.down_proj
            layer.__class__ = Experts
        elif kind == "Qwen3MoeTopKRouter":
            layer.linear = _make_linear(layer.weight.detach())
            del layer.weight
            layer.__class__ = _Router


def _make_linear(weight: torch.Tensor) -> nn.Linear:
    """Return a linear layer without bias around a weight, `[N, K]`, that is not copied."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear
