"""Save and load the state of a training, so that a killed run resumes bit for bit.

The state has parameters, optimizer moments, the random state and the step. The order of the examples and the learning
rate follow from the step, and nothing else changes during training.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from assay_training.distributed.sharding import gather_full_tensor, take_local_shard
from assay_training.errors import RunStopped
from assay_training.runs.files import replace_whole


class ResumePoint:
    """A file with the state of one training.

    Args:
        path: path of the file. It is written under another name and renamed, so that a kill leaves a complete file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def save(
        self,
        step: int,
        parameters: Sequence[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        *,
        writes: bool,
        kept: Mapping[str, float | str | None] | None = None,
    ) -> None:
        """Replace the stored state by the current one; every process must call it, to gather sharded tensors.

        Args:
            step: number of the step that comes next.
            parameters: trained parameters.
            optimizer: optimizer with its moments.
            writes: True in the one process that writes the file.
            kept: further values that change from step to step, such as the KL coefficient.
        """
        moments = optimizer.state_dict()
        state = {
            "step": step,
            "parameters": [gather_full_tensor(parameter.detach()) for parameter in parameters],
            # Stored unsharded: one process writes the file, and any number of processes can load it.
            "optimizer": moments
            | {"state": {i: _map_tensors(gather_full_tensor, tensors) for i, tensors in moments["state"].items()}},
            "random": torch.get_rng_state(),
            "kept": dict(kept or {}),
        }
        if not writes:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        replace_whole(self._path, lambda path: torch.save(state, path))

    def load(
        self, parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> tuple[int, dict[str, float | str | None]]:
        """Restore the stored state, if there is one.

        Args:
            parameters: trained parameters, changed in place.
            optimizer: optimizer of these parameters, changed in place.

        Returns:
            The step that comes next, and the values that were kept; 0 and nothing without a stored state.

        Raises:
            RunStopped: the file is broken.
        """
        if not self._path.is_file():
            return 0, {}
        state = self._read()
        with torch.no_grad():
            for parameter, stored in zip(parameters, state["parameters"], strict=True):
                parameter.copy_(take_local_shard(stored, parameter))
        moments, optimized = state["optimizer"], [p for group in optimizer.param_groups for p in group["params"]]
        moments["state"] = {
            i: _map_tensors(_build_sharder(optimized[i]), tensors) for i, tensors in moments["state"].items()
        }
        optimizer.load_state_dict(moments)
        torch.set_rng_state(state["random"])
        return int(state["step"]), state["kept"]

    def _read(self) -> dict[str, Any]:
        """Return the stored state, with tensors on the CPU."""
        try:
            state: dict[str, Any] = torch.load(self._path, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:  # a broken pickle may raise anything
            raise RunStopped(
                f"{self._path}: the stored state is broken; remove the file, and the training starts again"
            ) from error
        return state


def _map_tensors(
    change: Callable[[torch.Tensor], torch.Tensor], moments: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return the optimizer state of one parameter with every tensor changed."""
    return {name: change(tensor) for name, tensor in moments.items()}


def _build_sharder(parameter: nn.Parameter) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function that shards the moments of `parameter` as the parameter is."""
    # AdamW's step count has another shape, and is not sharded.
    return lambda tensor: take_local_shard(tensor, parameter) if tensor.shape == parameter.shape else tensor
