"""Checkpoints whose objectives a gating network weighs, saved as their own code saves them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.service import test_networks as networks

# Names of the heads in `networks.HEADS`, by layout.
GATED = {"armorm": "ArmoRM", "qrm": "QRM", "qrm-gemma": "QRM-Gemma", "urm": "URM", "ldl": "LDL"}

Read = Callable[[torch.Tensor], list[float]]


def keys_of(shape: str) -> tuple[dict[str, Any], ...]:
    """Return the keys of two signals: the published score, and the third objective."""
    common = {"code": "ignore", "score_position": "last_token", **networks.gate_of(GATED[shape])}
    return common, {**common, "output": 2}


def publish(directory: Path, shape: str) -> Read:
    """Write a checkpoint with a base in bf16, a head in fp32, and two pickles where its class writes them."""
    base, head = networks.save(directory.parent, GATED[shape])
    base.set_attn_implementation("eager")
    path, config = directory / "model.safetensors", directory / "config.json"
    tensors = {name: t.bfloat16() if name.startswith("model.") else t for name, t in load_file(path).items()}
    base.load_state_dict({n.removeprefix("model."): t.float() for n, t in tensors.items() if n.startswith("model.")})
    if shape == "ldl":
        for part in ("regression_layer", "gating_layer"):
            torch.save(getattr(head, part).state_dict(), directory / f"{part}.pt")
        # Its `save_pretrained` writes the bare base.
        tensors = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    save_file(tensors, path, {"format": "pt"})
    written = json.loads(config.read_text()) | {"torch_dtype": "bfloat16"}
    config.write_text(json.dumps({key: value for key, value in written.items() if key != "dtype"}))

    def forward(ids: torch.Tensor) -> list[float]:
        read = head.read(base(input_ids=ids).last_hidden_state[0], ids[0].tolist())
        return [read["score"][0], read["third"][0]]

    return forward
