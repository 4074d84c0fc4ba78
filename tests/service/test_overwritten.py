"""Files of a checkpoint that change while it is served change no score (scoring-traps 29)."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from assay_service.registry import Registry
from assay_service.scoring.item import Item
from tests import checkpoints
from tests.service.test_start import load

ITEMS = (Item.of("bake?", "yes"), Item.of("the fox", "no, wait and bake it"))


def overwrite(path: Path) -> None:
    """Write other values over the tensors of a file in place, as `cp` and `rsync --inplace` do."""
    other = path.with_suffix(".other")
    save_file({name: tensor * 3 + 1 for name, tensor in load_file(path).items()}, other, metadata={"format": "pt"})
    content = other.read_bytes()
    assert len(content) == path.stat().st_size
    with path.open("r+b") as file:
        file.write(content)


def logits(served: Registry) -> list[float]:
    signal = served.signals["s"]
    sequences = [signal.renderer.render(item).sequence for item in ITEMS]
    with torch.inference_mode():
        return [float(logit) for logit in signal.model.logits(sequences, "s")]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ["llama", "bert"])
@pytest.mark.parametrize("adapted", [False, True], ids=["whole", "adapter"])
def test_weights_that_are_overwritten_change_no_score(
    adapted: bool, architecture: str, dtype: str, tmp_path: Path
) -> None:
    fast = checkpoints.tokenizer_of(architecture)
    reference = checkpoints.classifier(architecture, fast)
    checkpoints.save(tmp_path / "base", reference.to(getattr(torch, dtype)), fast)
    signal: dict[str, Any] = {"dtype": dtype, "token_types": "zero" if architecture == "bert" else None}
    if adapted:
        checkpoints.save_adapter(tmp_path / "adapter", copy.deepcopy(reference))
        signal["adapter"] = str(tmp_path / "adapter")
    served = load(tmp_path / "base", **signal)
    before = logits(served)
    files = sorted(tmp_path.rglob("*.safetensors"))
    for path in files:
        overwrite(path)
    assert logits(served) == before
    assert logits(load(tmp_path / "base", **signal)) != before
    for path in files:
        path.write_bytes(b"")
    assert logits(served) == before
