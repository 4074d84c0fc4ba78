"""Peak memory of a process with one base and some adapters on it.

    python -m benchmarks.memory MODEL ADAPTERS

Prints a JSON object: `peak_mib`, after a batch for every signal.
"""

import json
import resource
import sys
from pathlib import Path

import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from assay_service import loader, settings
from assay_service.scoring.item import Item
from benchmarks.workloads import WORKLOADS, make_groups

SETTINGS = {"kind": "preference", "eos": "template", "unfinished": "score", "dtype": "bfloat16"}
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def write_adapters(model: Path, count: int) -> None:
    """Random LoRA adapters of rank 16 on every linear layer, each with a head, beside the model."""
    for number in range(count):
        torch.manual_seed(number)
        base = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.bfloat16)
        lora = LoraConfig(task_type="SEQ_CLS", r=16, lora_alpha=32, target_modules=LINEARS, init_lora_weights=False)
        get_peft_model(base, lora).save_pretrained(model / f"adapter-{number}")


def measure_peak_mib(model: Path, count: int) -> float:
    """Loads the base with `count` adapters and scores some items with each."""
    signals = {f"s{n}": SETTINGS | {"base": str(model), "adapter": str(model / f"adapter-{n}")} for n in range(count)}
    path = model / f"service-adapters-{count}.yaml"
    path.write_text(yaml.safe_dump({"signals": signals, "default": "s0"}))
    served = loader.load(settings.read_settings(path))
    assert all(served.invariant.values())
    groups = make_groups(WORKLOADS[0], 0)[:8]
    items = [Item.of(group.prompt, completion) for group in groups for completion in group.completions]
    for name, signal in served.signals.items():
        with torch.inference_mode():
            signal.model.logits([signal.renderer.render(item).sequence for item in items], name)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    print(json.dumps({"peak_mib": measure_peak_mib(Path(sys.argv[1]), int(sys.argv[2]))}))
