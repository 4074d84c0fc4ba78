"""Recognize heads with a gating network by the names and shapes of a checkpoint's tensors, without torch.

Such a head predicts several objectives, and a gating network weighs them. Sources: ArmoRM and QRM ([ArmoRM], [QRM]),
URM as SGLang serves it ([URM]), and LDL-Reward as RewardBench serves it ([LDL]).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from assay_service.errors import StartError
from assay_service.scoring.names import HEAD_MODULES, Shapes, unwrap_name

Kind = Literal["values", "quantiles", "normals", "bins"]
Activation = Literal["relu", "selu", "leaky_relu"]

BINS = 10  # LDL-Reward predicts how probable each of 10 values from 0 to 1 is
_PREDICTIONS = {"values": "a value", "quantiles": "quantiles", "normals": "a normal distribution", "bins": "bins"}
_PARTS = ("weight", "bias")
_NORM_PARTS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
# What a tensor's name begins with if it belongs to such a head.
_ROOTS = ("regression_layer.", "reward_transform_matrix", "gating.", "gating_layer.", "weights.fc.")
# Hidden layers of the gating network, and the temperature of its softmax, where `config.json` does not have them. The
# code that comes with QRM-Gemma has another temperature than that of the Llama models.
_HIDDEN_LAYERS = 3
_TEMPERATURES = {"llama": 10.0, "gemma2": 1.0}


@dataclass(frozen=True, slots=True)
class Stack:
    """Linear layers one after the other, with an activation, and maybe a batch norm, after each but the last.

    Attributes:
        layers: names of the linear layers.
        norms: names of the batch norms, one for each layer but the last; empty if there are none.
        biased: layers that have a bias.
        activation: activation between the layers.
    """

    layers: tuple[str, ...]
    norms: tuple[str, ...]
    biased: frozenset[str]
    activation: Activation

    @property
    def tensors(self) -> list[str]:
        """Return the names of all tensors."""
        names = [f"{layer}.{part}" for layer in self.layers for part in _PARTS[: 1 + (layer in self.biased)]]
        return [*names, *(f"{norm}.{part}" for norm in self.norms for part in _NORM_PARTS)]


@dataclass(frozen=True, slots=True)
class HeadLayout:
    """The parts of a head with a gating network. Names are without the prefixes of wrappers.

    Attributes:
        kind: form of a prediction: a value, quantiles, mean and log standard deviation, or probabilities of bins.
        objectives: number of objectives.
        numbers: numbers that are predicted for each objective.
        predictor: layers from the hidden state to the numbers of all objectives.
        gate: layers from a hidden state to the weights of the objectives.
        reads_prompt: whether the gate reads the end of the prompt. Otherwise it reads what the predictor reads.
        temperature: temperature of the softmax over the weights; None if there is no softmax.
        scale: name of the number that multiplies the weights; None if there is none.
        transform: name of the matrix by which the objectives are multiplied before they are weighed; None if there is
            none.
    """

    kind: Kind
    objectives: int
    numbers: int
    predictor: Stack
    gate: Stack
    reads_prompt: bool
    temperature: float | None
    scale: str | None = None
    transform: str | None = None

    @property
    def tensors(self) -> list[str]:
        """Return the names of all tensors of the head."""
        return [*self.predictor.tensors, *self.gate.tensors, *(n for n in (self.scale, self.transform) if n)]

    def has_std(self, output: int | None) -> bool:
        """Return whether the head gives a standard deviation.

        Args:
            output: objective that is read; None for the weighted sum of all.
        """
        # Without a softmax the weights of LDL-Reward need not be probabilities, so that the sum may not be a mixture.
        is_mixture = output is not None or self.temperature is not None
        return self.kind != "values" and (self.kind != "bins" or is_mixture)

    def describe(self) -> str:
        """Return one line on the head, for people."""
        place = "the prompt" if self.reads_prompt else "the score position"
        return (
            f"{self.objectives} objectives with {_PREDICTIONS[self.kind]} each ({self.predictor.layers[-1]}), "
            f"weighed by a gate that reads {place} ({self.gate.layers[0]})"
        )


def recognize_layout(shapes: Shapes, config: Mapping[str, Any], where: object) -> HeadLayout | None:
    """Return the layout of a head with a gating network, or None if the checkpoint has none.

    Args:
        shapes: shapes of all tensors of the checkpoint, keyed by name.
        config: its `config.json`.
        where: name of the checkpoint in errors.

    Raises:
        StartError: a tensor or a key of `config.json` is missing, unknown or does not fit; the message names it.
    """
    present = {unwrap_name(name): shape for name, shape in shapes.items()}
    if not any(name.startswith(("gating.", "gating_layer.", "weights.fc.")) for name in present):
        return None
    parts = _find_parts(present, config)
    _check_names(parts, present, where)
    objectives, rows = (_count_rows(f"{s.layers[-1]}.weight", present, where) for s in (parts.gate, parts.predictor))
    if objectives == 0 or rows % objectives:
        raise StartError(
            f"{where}: {parts.predictor.layers[-1]}.weight has {rows} rows, not a multiple of the {objectives} "
            f"rows of {parts.gate.layers[-1]}.weight; check that both are of one checkpoint"
        )
    layout = parts.build(objectives, rows // objectives, config)
    _check_shapes(layout, present, config, where)
    return layout


@dataclass(frozen=True, slots=True)
class _Parts:
    """The parts of a head before their shapes are known."""

    family: Literal["gated", "urm", "ldl"]
    predictor: Stack
    gate: Stack
    scale: str | None = None
    transform: str | None = None

    @property
    def tensors(self) -> list[str]:
        return [*self.predictor.tensors, *self.gate.tensors, *(n for n in (self.scale, self.transform) if n)]

    def build(self, objectives: int, numbers: int, config: Mapping[str, Any]) -> HeadLayout:
        """Return the layout, after the keys of `config.json` were compared with the shapes.

        Raises:
            StartError: a key contradicts the shapes, or has an unusable value.
        """
        kind: Kind
        temperature: float | None = None
        if self.family == "urm":
            kind, expected = "normals", 2
        elif self.family == "ldl":
            kind, expected = "bins", BINS
            _check_count(config, "num_objectives", objectives * numbers, self.predictor)
            if (softmax := config.get("softmax", False)) not in (True, False):
                raise StartError(f"config.json: softmax must be true or false, not {softmax!r}; correct the file")
            if softmax:
                temperature = _read_number(config, "temperature", 1.0)
        else:
            expected = _check_count(config, "num_quantiles", numbers, self.predictor)
            kind = "quantiles" if numbers > 1 else "values"
            _check_count(config, "num_objectives", objectives, self.gate)
            temperature = _read_number(config, "gating_temperature", _TEMPERATURES.get(config.get("model_type", "")))
        if numbers != expected:
            raise StartError(
                f"{self.predictor.layers[-1]}.weight has {objectives * numbers} rows for {objectives} objectives; it "
                f"needs {expected} for each: take weights and config.json of one model"
            )
        parts = self.predictor, self.gate, self.family == "gated"
        return HeadLayout(kind, objectives, numbers, *parts, temperature, self.scale, self.transform)


def _find_parts(present: Shapes, config: Mapping[str, Any]) -> _Parts:
    """Return the parts of the head whose names the tensors have."""
    if any(name.startswith("weights.fc.") for name in present):
        gate = [f"weights.fc.{index}" for index in (0, 2, 4)]
        return _Parts("urm", _build_stack(["score"], "relu", biased=False), _build_stack(gate, "selu"))
    if any(name.startswith("gating_layer.") for name in present):
        predictor = [f"regression_layer.network.{index}" for index in (0, 2, 4)]
        gate = [f"gating_layer.network.{index}" for index in (0, 3, 6)]
        return _Parts("ldl", _build_stack(predictor, "leaky_relu"), _build_stack(gate, "leaky_relu"))
    # No more than there are tensors: a name that is missing then is enough for the error.
    hidden = min(_read_count(config, "gating_n_hidden", _HIDDEN_LAYERS), len(present))
    candidates = [_build_plain_gate(hidden), *(_build_normed_gate(hidden, dropout=d) for d in (False, True))]
    gate_stack = max(candidates, key=lambda stack: len(present.keys() & set(stack.tensors)))
    # QRM-Gemma has no such matrix.
    lacks = config.get("model_type") == "gemma2" and "reward_transform_matrix" not in present
    transform = None if lacks else "reward_transform_matrix"
    predictor_stack = _build_stack(["regression_layer"], "relu", biased=False)
    return _Parts("gated", predictor_stack, gate_stack, "gating.logit_scale", transform)


def _build_stack(layers: Iterable[str], activation: Activation, *, biased: bool = True) -> Stack:
    names = tuple(layers)
    return Stack(names, (), frozenset(names if biased else ()), activation)


def _build_plain_gate(hidden: int) -> Stack:
    """Return the gating network of ArmoRM: linear layers with a ReLU between."""
    return _build_stack([f"gating.layers.{index}" for index in range(hidden + 1)], "relu")


def _build_normed_gate(hidden: int, *, dropout: bool) -> Stack:
    """Return the gating network of QRM: each hidden layer has a ReLU, a batch norm and maybe a dropout after it.

    Only the last layer has a bias. There is no dropout before it.
    """
    step = 4 if dropout else 3
    starts = [index * step for index in range(hidden)]
    last = f"gating.layers.{starts[-1] + 3 if starts else 0}"
    layers = (*(f"gating.layers.{start}" for start in starts), last)
    return Stack(layers, tuple(f"gating.layers.{start + 2}" for start in starts), frozenset({last}), "relu")


def _check_names(parts: _Parts, present: Shapes, where: object) -> None:
    """Refuse a head with tensors that are missing or unknown."""
    needed = parts.tensors
    missing = [name for name in needed if name not in present]
    if missing:
        raise StartError(
            f"{where}: tensor {missing[0]} is missing ({len(missing)} missing), without which the head with the gate "
            f"{parts.gate.layers[0]}.weight cannot be computed; download or save the checkpoint again"
        )
    roots = (*_ROOTS, *(f"{module}." for module in HEAD_MODULES))
    unknown = sorted(name for name in present.keys() - set(needed) if name.startswith(roots))
    if unknown:
        raise StartError(
            f"{where}: tensor {unknown[0]} has no place in the head with the gate {parts.gate.layers[0]}.weight "
            f"({len(unknown)} unknown), so scores without it would be wrong; save only the head that was trained"
        )


def _check_shapes(layout: HeadLayout, present: Shapes, config: Mapping[str, Any], where: object) -> None:
    """Refuse a head whose tensors do not fit each other or the base."""
    expected: dict[str, tuple[int, ...]] = {}
    hidden_size = config.get("hidden_size")
    for stack in (layout.predictor, layout.gate):
        width = hidden_size if isinstance(hidden_size, int) else present[f"{stack.layers[0]}.weight"][-1]
        for number, layer in enumerate(stack.layers):
            rows = _count_rows(f"{layer}.weight", present, where)
            expected[f"{layer}.weight"] = (rows, width)
            width = rows
            if layer in stack.biased:
                expected[f"{layer}.bias"] = (width,)
            if number < len(stack.norms):
                norm = stack.norms[number]
                expected |= {f"{norm}.{part}": (width,) for part in _NORM_PARTS[:-1]}
                expected[f"{norm}.{_NORM_PARTS[-1]}"] = ()
    if layout.scale is not None:
        expected[layout.scale] = (1,)
    if layout.transform is not None:
        expected[layout.transform] = (layout.objectives, layout.objectives)
    for name, shape in expected.items():
        if tuple(present[name]) != shape:
            raise StartError(
                f"{where}: tensor {name} has shape {list(present[name])}, but this head on this base needs "
                f"{list(shape)}; check that all tensors and config.json are of one checkpoint"
            )


def _count_rows(name: str, present: Shapes, where: object) -> int:
    """Return the number of rows of a weight, which must have two axes."""
    if len(present[name]) != 2:
        raise StartError(
            f"{where}: tensor {name} has shape {list(present[name])}, but the weight of a layer has two axes; download "
            "or save the checkpoint again"
        )
    return present[name][0]


def _check_count(config: Mapping[str, Any], key: str, count: int, stack: Stack) -> int:
    """Return `count`; a value of `config.json` that differs is an error."""
    if _read_count(config, key, count) != count:
        raise StartError(
            f"config.json: {key} is {config[key]}, but {stack.layers[-1]}.weight has the shape of {count}; check that "
            "both are of one checkpoint"
        )
    return count


def _read_count(config: Mapping[str, Any], key: str, default: int) -> int:
    value = config.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise StartError(f"config.json: {key} must be a whole number, not {value!r}; correct the file")
    return value


def _read_number(config: Mapping[str, Any], key: str, default: float | None) -> float:
    value = config.get(key, default)
    if value is None:
        raise StartError(
            f"config.json: has no {key}, which changes every score; write the value that the checkpoint's code uses "
            "into a copy of the file"
        )
    if not isinstance(value, int | float) or isinstance(value, bool) or not (math.isfinite(value) and value > 0):
        raise StartError(f"config.json: {key} must be a number above 0, not {value!r}; correct the file")
    return float(value)
