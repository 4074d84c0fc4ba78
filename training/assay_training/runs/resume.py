"""Where a run stands, so that a killed one continues bit for bit: parameters, optimizer, random state, step.

The order of the examples and the learning rate follow from the step; nothing else changes while training.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from assay_training.distributed.sharding import shard_of, whole
from assay_training.errors import RunStopped


class ResumePoint:
    """A file with the state of one training.

    Args:
        path: of the file; written under another name and renamed, so that a kill leaves a whole one or none.
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
        """Replaces the state by that before `step`. Every process must call it; the one that `writes` does so.

        Args:
            step: that comes next.
            parameters: what is trained.
            optimizer: with its moments.
            writes: whether this process writes.
            kept: what else changes from step to step.
        """
        moments = optimizer.state_dict()
        state = {
            "step": step,
            "parameters": [whole(parameter.detach()) for parameter in parameters],
            "optimizer": moments | {"state": {i: _map(whole, of) for i, of in moments["state"].items()}},
            "random": torch.get_rng_state(),
            "kept": dict(kept or {}),
        }
        if not writes:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.rename(self._path)

    def load(
        self, parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> tuple[int, dict[str, float | str | None]]:
        """Puts the stored state into place, if there is one; returns the step that comes next, and what was kept.

        Raises:
            RunStopped: the file is broken.
        """
        if not self._path.is_file():
            return 0, {}
        state = self._read()
        with torch.no_grad():
            for parameter, stored in zip(parameters, state["parameters"], strict=True):
                parameter.copy_(shard_of(stored, parameter))
        moments, optimised = state["optimizer"], [p for group in optimizer.param_groups for p in group["params"]]
        moments["state"] = {i: _map(_part_of(optimised[i]), of) for i, of in moments["state"].items()}
        optimizer.load_state_dict(moments)
        torch.set_rng_state(state["random"])
        return int(state["step"]), state["kept"]

    def _read(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = torch.load(self._path, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:  # a broken pickle may raise anything
            raise RunStopped(
                f"{self._path}: not a state that training can go on from; without the file it begins anew"
            ) from error
        return state


def _map(
    change: Callable[[torch.Tensor], torch.Tensor], moments: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    return {name: change(tensor) for name, tensor in moments.items()}


def _part_of(parameter: nn.Parameter) -> Callable[[torch.Tensor], torch.Tensor]:
    """For the moments of `parameter`; its count of steps has another shape."""
    return lambda tensor: shard_of(tensor, parameter) if tensor.shape == parameter.shape else tensor
