"""What a run leaves behind: configuration, metrics, predictions by part, and the checkpoint that is served.

JSON files are written under another name and then renamed, so a killed run leaves whole files or none. Of a checkpoint
the manifest is written last; a directory without it is not one.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from assay_service.scoring import manifest as manifests
from assay_service.scoring.checkpoint import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from assay_training.config import RewardConfig


class RunMismatch(ValueError):
    """The directory holds a run of another configuration or of other data."""


class RunDirectory:
    """A directory with the state of one run.

    Args:
        path: is created if need be.
        config: must equal that of a run already there.
        base_sha256: likewise; of the base's weights.
        data_hashes: likewise.

    Raises:
        RunMismatch: a different run is there.
    """

    def __init__(self, path: Path, config: RewardConfig, base_sha256: str, data_hashes: Mapping[str, str]) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        run: dict[str, Any] = {
            "config": config.model_dump(mode="json", exclude={"template": True, "split": {"test_folds"}}),
            "template": config.template.read_text(),
            "base_sha256": base_sha256,
            "data_sha256": dict(data_hashes),
        }
        recorded = self.read_json("run.json")
        if recorded is not None and recorded != run:
            raise RunMismatch(f"{path} holds a run of another configuration or of other data; choose another --out")
        self.write_json("run.json", run)

    def read_json(self, name: str) -> Any:  # noqa: ANN401 - JSON
        """The contents of `name`, or None if the run has not got that far."""
        file = self.path / name
        return json.loads(file.read_text()) if file.is_file() else None

    def write_json(self, name: str, value: Any) -> None:  # noqa: ANN401 - JSON
        """Writes `value` as `name`, whole or not at all."""
        temporary = self.path / f"{name}.tmp"
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
        temporary.rename(self.path / name)

    def log(self, row: Mapping[str, Any]) -> None:
        """Appends a row to `metrics.jsonl`."""
        with (self.path / "metrics.jsonl").open("a") as stream:
            stream.write(json.dumps(row) + "\n")


def write_checkpoint(
    directory: Path,
    tensors: Mapping[str, torch.Tensor],
    config: RewardConfig,
    head_name: str,
    manifest: manifests.Manifest,
) -> None:
    """Writes an adapter with its head in PEFT's format, the template and the manifest.

    Args:
        directory: is created if need be.
        tensors: LoRA and head tensors under PEFT's names.
        config: the run's.
        head_name: the module that PEFT calls `modules_to_save`.
        manifest: the checkpoint's claims.
    """
    directory.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    (directory / ADAPTER_WEIGHTS).chmod(0o644)  # safetensors makes it private, and the server may be another user
    adapter = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": config.base,
        "r": config.lora.r,
        "lora_alpha": config.lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": config.lora.target_modules,
        "layers_to_transform": config.lora.layers,
        "bias": "none",
        "modules_to_save": [head_name],
        "inference_mode": True,
    }
    (directory / ADAPTER_CONFIG).write_text(json.dumps(adapter, indent=1) + "\n")
    (directory / "chat_template.jinja").write_text(config.template.read_text())
    manifests.write(manifest, directory)
