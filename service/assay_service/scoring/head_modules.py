"""Compute heads with a gating network in fp32: values, quantiles, normal distributions or bins of several objectives.

Everything after a linear layer is computed row by row, because the remainder of many numbers at once may be computed
another way (`kernels/row_invariant.py`).
"""

from collections.abc import Mapping

import torch
from torch import nn

from assay_service.errors import StartError
from assay_service.scoring.head_layouts import BINS, HeadLayout, Kind, Stack
from assay_service.scoring.network_files import NetworkTensors

_ACTIVATIONS: Mapping[str, type[nn.Module]] = {"relu": nn.ReLU, "selu": nn.SELU, "leaky_relu": nn.LeakyReLU}
_NORM_EPSILON = 1e-5  # of torch's BatchNorm1d, which the original code does not change


class Layers(nn.Module):
    """Linear layers in fp32 with an activation, and maybe a batch norm in its evaluation form, after each but the last.

    Args:
        linears: weight and bias of each layer; None for a layer without bias.
        norms: scale and shift of each batch norm, `[D]` each; empty if there are none.
        activation: name of the activation.
    """

    def __init__(
        self,
        linears: list[tuple[torch.Tensor, torch.Tensor | None]],
        norms: list[tuple[torch.Tensor, torch.Tensor]],
        activation: str,
    ) -> None:
        super().__init__()
        self.linears = nn.ModuleList()
        for weight, bias in linears:
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
            layer.weight = nn.Parameter(weight.float())
            if bias is not None:
                layer.bias = nn.Parameter(bias.float())
            self.linears.append(layer)
        self.norms = nn.ParameterList(nn.Parameter(torch.stack(norm)) for norm in norms)
        self.activation = _ACTIVATIONS[activation]()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return the output of the last layer, fp32 `[n, D]`, for fp32 `[n, H]`."""
        for number, linear in enumerate(self.linears):
            states = linear(states)
            if number + 1 < len(self.linears):
                states = torch.stack([self._bend(row, number) for row in states])
        return states

    def _bend(self, row: torch.Tensor, number: int) -> torch.Tensor:
        """Return the activation and norm after layer `number` of one row, `[D]`."""
        active: torch.Tensor = self.activation(row)
        return active * self.norms[number][0] + self.norms[number][1] if len(self.norms) else active


class GatingNetwork(nn.Module):
    """A network that gives each objective a weight.

    Args:
        layers: layers from a hidden state to one number for each objective.
        temperature: temperature of the softmax; None for no softmax.
        scale: number that multiplies the weights, `[1]`; None if there is none.
    """

    def __init__(self, layers: Layers, temperature: float | None, scale: torch.Tensor | None) -> None:
        super().__init__()
        self.layers = layers
        self.temperature = temperature
        self.scale = None if scale is None else nn.Parameter(scale.float())

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return the weights of the objectives, fp32 `[n, O]`, for hidden states, fp32 `[n, H]`."""
        return torch.stack([self._weigh(row) for row in self.layers(states)])

    def _weigh(self, row: torch.Tensor) -> torch.Tensor:
        if self.temperature is not None:
            row = (row / self.temperature).softmax(dim=0)
        return row if self.scale is None else row * self.scale


class NetworkHead(nn.Module):
    """A head that predicts several objectives and gives their weighted sum, or that predicts one of them.

    Args:
        predictor: layers from the hidden state to the numbers of the objectives.
        gate: network that weighs the objectives; None if one objective is read.
        kind: meaning of an objective's numbers.
        objectives: number of objectives that are predicted.
        has_std: whether the standard deviation is given as well.
    """

    def __init__(
        self, predictor: Layers, gate: GatingNetwork | None, kind: Kind, objectives: int, *, has_std: bool
    ) -> None:
        super().__init__()
        self.predictor = predictor
        self.gate = gate
        self.kind = kind
        self.objectives = objectives
        self.has_std = has_std

    def forward(self, pooled: torch.Tensor, gates: torch.Tensor | None = None) -> torch.Tensor:
        """Return logits, fp32 `[n]`, or logits and their standard deviations, fp32 `[n, 2]`; autocast is off.

        Args:
            pooled: pooled hidden states, `[n, H]`.
            gates: hidden states that the gate reads, `[n, H]`; None for those of `pooled`.
        """
        with torch.autocast(pooled.device.type, enabled=False):
            predicted = self.predictor(pooled.float())
            if self.gate is None:
                weights = predicted.new_ones(len(predicted), 1)
            else:
                weights = self.gate((pooled if gates is None else gates).float())
            rows = [self._read(*row) for row in zip(predicted, weights, strict=True)]
            return torch.stack([row if self.has_std else row[0] for row in rows])

    def _read(self, numbers: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return mean and standard deviation, `[2]`, for the numbers of all objectives and their weights, `[O]`."""
        each = numbers.view(self.objectives, -1)
        match self.kind:
            case "values":
                mean = (weights * each[:, 0]).sum()
                return torch.stack([mean, torch.zeros_like(mean)])
            case "quantiles":  # the weighted sum of equal quantiles is the same quantile of the weighted sum
                quantiles = (weights[:, None] * each).sum(dim=0)
                return torch.stack([quantiles.mean(), quantiles.std(correction=0)])
            case "normals":  # of independent objectives, as they are drawn in training
                deviations = weights * each[:, 1].exp()
                return torch.stack([(weights * each[:, 0]).sum(), deviations.square().sum().sqrt()])
            case "bins":
                values = torch.linspace(0, 1, BINS, device=each.device)
                masses = (weights[:, None] * each.softmax(dim=-1)).sum(dim=0)
                mean = (masses * values).sum()
                variance = (masses * (values - mean).square()).sum()
                return torch.stack([mean, variance.sqrt()])


def build_network(tensors: NetworkTensors) -> NetworkHead:
    """Return a head with a gating network, or one of its objectives, as a module in fp32.

    Raises:
        StartError: the objective that is read has only zeros as its weights.
    """
    layout, output = tensors.layout, tensors.output
    linears = _list_linears(layout.predictor, tensors.tensors)
    weight, bias = linears[-1]
    transform = None if layout.transform is None else tensors.tensors.get(layout.transform)
    if transform is not None:
        weight = _fold_transform(weight, transform, layout)
    if output is not None:
        chosen = slice(output * layout.numbers, (output + 1) * layout.numbers)
        weight, bias = weight[chosen], None if bias is None else bias[chosen]
        if not torch.count_nonzero(weight):
            raise StartError(
                f"{tensors.name}: the rows of output {output} are all zero, so every score would be the same; declare "
                "another `output`"
            )
    predictor = Layers([*linears[:-1], (weight, bias)], [], layout.predictor.activation)
    gate = None
    if output is None:
        layers = Layers(
            _list_linears(layout.gate, tensors.tensors),
            [_read_norm(norm, tensors.tensors) for norm in layout.gate.norms],
            layout.gate.activation,
        )
        scale = None if layout.scale is None else tensors.tensors[layout.scale]
        gate = GatingNetwork(layers, layout.temperature, scale)
    objectives = layout.objectives if output is None else 1
    return NetworkHead(predictor, gate, layout.kind, objectives, has_std=layout.has_std(output))


def _list_linears(stack: Stack, tensors: Mapping[str, torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    return [
        (tensors[f"{layer}.weight"], tensors[f"{layer}.bias"] if layer in stack.biased else None)
        for layer in stack.layers
    ]


def _read_norm(name: str, tensors: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scale and the shift, fp32 `[D]` each, that a batch norm applies in evaluation; computed in fp64."""
    weight, bias, mean, var = (
        tensors[f"{name}.{part}"].double() for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = weight / (var + _NORM_EPSILON).sqrt()
    return scale.float(), (bias - mean * scale).float()


def _fold_transform(weight: torch.Tensor, transform: torch.Tensor, layout: HeadLayout) -> torch.Tensor:
    """Return the weight, fp32 `[O·D, H]`, that predicts the objectives multiplied by the matrix; computed in fp64."""
    rows = weight.double().view(layout.objectives, layout.numbers, -1)
    return torch.einsum("op,onh->pnh", transform.double(), rows).float().flatten(0, 1)
