"""Where a run stands, so that a killed one continues bit for bit: parameters, optimiser, random state, step.

The order of the examples and the learning rate follow from the step; nothing else changes while training.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn


class ResumePoint:
    """A file with the state of one training.

    Args:
        path: of the file; written under another name and renamed, so that a kill leaves a whole one or none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def save(self, step: int, parameters: Sequence[nn.Parameter], optimiser: torch.optim.Optimizer) -> None:
        """Replaces the state by that before `step`."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".tmp")
        state = {
            "step": step,
            "parameters": [parameter.detach() for parameter in parameters],
            "optimiser": optimiser.state_dict(),
            "random": torch.get_rng_state(),
        }
        torch.save(state, temporary)
        temporary.rename(self._path)

    def load(self, parameters: Sequence[nn.Parameter], optimiser: torch.optim.Optimizer) -> int:
        """Puts the stored state into place, if there is one; returns the step that comes next."""
        if not self._path.is_file():
            return 0
        state = torch.load(self._path, map_location="cpu", weights_only=True)
        with torch.no_grad():
            for parameter, stored in zip(parameters, state["parameters"], strict=True):
                parameter.copy_(stored)
        optimiser.load_state_dict(state["optimiser"])
        torch.set_rng_state(state["random"])
        return int(state["step"])
