"""Store hidden states of token sequences on disk while a run computes them, and read them back through memory mapping.

A folder holds two files. `states.bin` has the states of one part after another. `index.txt` has a line for each part,
after a line that says what computed them. States are written before their line, so a killed run leaves whole parts and
at most an unfinished end, which the next start removes.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from assay_training.errors import RunStopped
from assay_training.runs.files import stop_if_unwritable


class StateStore:
    """A folder with the hidden states of parts of token sequences, each under a key that its tokens decide.

    Args:
        folder: folder of the two files; created if it does not exist.
        identity: everything besides the tokens that decides the states, as JSON.
        hidden_size: width `H` of the states.
        dtype: dtype in which they are stored.

    Raises:
        RunStopped: the folder holds states of another identity, or fewer than its index says; or it cannot be written.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], hidden_size: int, dtype: torch.dtype) -> None:
        self._index, self._states = folder / "index.txt", folder / "states.bin"
        self._dtype, self.token_bytes = dtype, hidden_size * dtype.itemsize
        self._places: dict[str, slice] = {}  # tokens of each part in the file
        self._tokens = 0
        with stop_if_unwritable(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._open(json.dumps({**identity, "hidden_size": hidden_size, "dtype": str(dtype)}, sort_keys=True))

    def __contains__(self, key: str) -> bool:
        """Return whether the states of a part are stored."""
        return key in self._places

    def append(self, parts: Mapping[str, torch.Tensor]) -> None:
        """Add parts that are not stored yet.

        Args:
            parts: hidden states of each part by its key, `[T, H]` of any floating dtype.

        Raises:
            RunStopped: the states cannot be written, for example because the disk is full.
        """
        with stop_if_unwritable(self._states):
            with self._states.open("ab") as stream:
                for states in parts.values():
                    stored = states.detach().to("cpu", self._dtype).contiguous()
                    stream.write(stored.view(torch.uint8).numpy().data)
                stream.flush()
                os.fsync(stream.fileno())  # a line of the index must not outlive its states
            with self._index.open("a") as lines:
                lines.writelines(f"{key} {len(states)}\n" for key, states in parts.items())
        for key, states in parts.items():
            self._place(key, len(states))

    def read(self, keys: Sequence[str]) -> torch.Tensor:
        """Return the states of some parts, one after the other, `[T, H]` in the stored dtype.

        Raises:
            KeyError: a part is not stored.
        """
        # Mapped read-only: a writable private mapping of a file larger than the memory would be refused.
        mapped = np.memmap(self._states, np.uint8, "r", shape=(self._tokens, self.token_bytes))
        return torch.from_numpy(np.concatenate([mapped[self._places[key]] for key in keys])).view(self._dtype)

    def _open(self, header: str) -> None:
        """Read the index, and remove what a killed run left unfinished."""
        written = self._index.read_text() if self._index.is_file() else ""
        lines = written[: written.rfind("\n") + 1].splitlines()  # the last line may be half written
        if lines and lines[0] != header:
            raise RunStopped(
                f"{self._index.parent} holds hidden states of another base, layer or dtype; remove this folder, and "
                "the run computes them again"
            )
        for line in lines[1:]:
            key, tokens = line.split(" ")
            self._place(key, int(tokens))
        self._index.write_text("\n".join([*(lines or [header]), ""]))
        self._states.touch()
        size = self._tokens * self.token_bytes
        if self._states.stat().st_size < size:
            raise RunStopped(
                f"{self._states} is shorter than its index says; remove the folder {self._index.parent}, and the run "
                "computes the hidden states again"
            )
        os.truncate(self._states, size)

    def _place(self, key: str, tokens: int) -> None:
        self._places[key] = slice(self._tokens, self._tokens + tokens)
        self._tokens += tokens
