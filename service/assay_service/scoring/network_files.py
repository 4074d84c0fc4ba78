"""Read the tensors of a head with a gating network, and check them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from assay_service.errors import StartError
from assay_service.scoring.checkpoint import check_plain, hash_tensors
from assay_service.scoring.head_layouts import HeadLayout
from assay_service.scoring.names import unwrap_name


@dataclass(frozen=True, slots=True)
class NetworkTensors:
    """A head with a gating network as files store it.

    Attributes:
        name: name of the weight that predicts the objectives.
        layout: parts of the head.
        tensors: tensors by their names without prefixes of wrappers; without those of the gate for one objective.
        output: objective that is read; None for the weighted sum of all.
    """

    name: str
    layout: HeadLayout
    tensors: Mapping[str, torch.Tensor]
    output: int | None = None

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of the values and of the objective that is read."""
        chosen = {} if self.output is None else {f"output {self.output}": torch.empty(0)}
        return hash_tensors({**self.tensors, **chosen})


def read_network(files: Sequence[Path], layout: HeadLayout, output: int | None) -> NetworkTensors:
    """Read a head with a gating network, or what predicts one of its objectives.

    Args:
        files: safetensors files of the checkpoint.
        layout: parts of the head.
        output: objective that is read; None for the weighted sum of all.

    Raises:
        StartError: a tensor holds values that are not finite, or only zeros; the message names it.
    """
    # How many batches a norm has seen decides nothing.
    needed = {name for name in layout.tensors if not name.endswith(".num_batches_tracked")}
    if output is not None:
        gate = {*layout.gate.tensors, layout.scale}
        needed -= {*gate, layout.transform} if layout.kind == "values" else gate
    tensors: dict[str, torch.Tensor] = {}
    for path in files:
        with safe_open(path, framework="pt", backend="pread") as file:
            tensors |= {n: file.get_tensor(name) for name in file.keys() if (n := unwrap_name(name)) in needed}  # noqa: SIM118
    for name, tensor in sorted(tensors.items()):
        check_plain(name, tensor)
        _check_values(name, tensor)
    return NetworkTensors(f"{layout.predictor.layers[-1]}.weight", layout, tensors, output)


def _check_values(name: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor with which scores would not be finite, or would not depend on the text."""
    if not bool(torch.isfinite(tensor).all()):
        raise StartError(
            f"{name}: holds values that are not finite, so scores would not be finite either; use a checkpoint from "
            "before training diverged"
        )
    if name.endswith(".running_var") and bool((tensor < 0).any()):
        raise StartError(f"{name}: holds a negative variance; download or save the checkpoint again")
    if not name.endswith((".bias", ".running_mean", ".running_var")) and not torch.count_nonzero(tensor):
        raise StartError(
            f"{name}: is all zero, so every score would be the same; the head was never trained: declare a trained one"
        )
