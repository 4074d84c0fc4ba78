"""Multimodal checkpoints are refused, and their text models, saved as the documentation says, score as they did."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Gemma3Config,
    Gemma3ForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen3_5Config,
    Qwen3_5ForSequenceClassification,
)

from assay_service import loader, settings
from assay_service.errors import StartError
from tests import checkpoints
from tests.service.test_parity import items

PAGE = Path(__file__).parents[2] / "docs/checkpoints.md"
VISION: dict[str, dict[str, Any]] = {
    "gemma3": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    },
    "qwen3_5": {"hidden_size": 16, "intermediate_size": 16, "depth": 1, "num_heads": 2, "out_hidden_size": 32},
}
CLASSES: dict[str, tuple[Any, Any]] = {
    "gemma3": (Gemma3Config, Gemma3ForSequenceClassification),
    "qwen3_5": (Qwen3_5Config, Qwen3_5ForSequenceClassification),
}


def multimodal(kind: str, fast: PreTrainedTokenizerFast) -> Any:
    """A tiny random multimodal classifier with one label."""
    config_class, model_class = CLASSES[kind]
    text = checkpoints.classifier(f"{kind}_text", fast).config
    config = config_class(text_config=text, vision_config=VISION[kind], num_labels=1)
    torch.manual_seed(0)
    return model_class(config).eval()


def configuration(directory: Path) -> settings.Settings:
    signal = {"base": str(directory), "kind": "preference", "eos": "template", "unfinished": "score"}
    return settings.Settings.model_validate({"signals": {"s": signal}, "default": "s", "directory": directory})


@pytest.mark.parametrize("kind", CLASSES)
def test_the_text_model_of_a_multimodal_classifier_scores_as_the_whole_did(kind: str, tmp_path: Path) -> None:
    fast = checkpoints.decoder_tokenizer()
    whole, text = tmp_path / "whole", tmp_path / "text"
    reference = multimodal(kind, fast)
    checkpoints.save(whole, reference, fast)
    with pytest.raises(StartError, match=rf"architecture '{kind}' also reads images.* as '{kind}_text' \(the commands"):
        loader.load(configuration(whole))
    section = PAGE.read_text().partition("## Multimodal checkpoints")[2]
    (code,) = re.findall(r"```python\n(.+?)```", section.partition("\n## ")[0], re.DOTALL)
    exec(code.replace('"DIR"', repr(str(whole))).replace('"TEXT"', repr(str(text))), {})
    served = loader.load(configuration(text)).signals["s"]
    sequences = [served.renderer.render(item).sequence for item in items()]
    with torch.inference_mode():
        logits = served.model.logits(sequences, "s").tolist()
    expected = [checkpoints.oracle(reference, sequence.ids) for sequence in sequences]
    assert max(expected) - min(expected) > 0.1
    assert logits == pytest.approx(expected, abs=1e-5)
