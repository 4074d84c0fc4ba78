"""The limit: the matrix products of the model's layers and nothing else, in the same process shape, the same run."""

import time

import torch
from transformers import AutoConfig

ROWS = 2048


def tokens_per_s(model_directory: str) -> float:
    """Tokens for which the layers' products alone could be computed in a second, 2,048 rows at a time, bf16."""
    config = AutoConfig.from_pretrained(model_directory)
    hidden, inner = config.hidden_size, config.intermediate_size
    kv = hidden * config.num_key_value_heads // config.num_attention_heads
    shapes = [
        (hidden, hidden),
        (hidden, kv),
        (hidden, kv),
        (hidden, hidden),
        (hidden, inner),
        (hidden, inner),
        (inner, hidden),
    ]
    weights = [torch.randn(outputs, inputs).bfloat16() for inputs, outputs in shapes]
    rows = {inputs: torch.randn(ROWS, inputs).bfloat16() for inputs, _ in shapes}
    best = float("inf")
    for _ in range(5):
        started_s = time.perf_counter()
        for _ in range(config.num_hidden_layers):
            for weight in weights:
                torch.nn.functional.linear(rows[weight.shape[1]], weight)
        best = min(best, time.perf_counter() - started_s)
    return ROWS / best
