"""The limit: the matrix products of the model's layers and nothing else, in the same process shape, the same run."""

import statistics
import time

import torch
from transformers import AutoConfig

ROWS = 2048
REPEATS = 7


def measure_tokens_per_s(model_directory: str) -> float:
    """Tokens for which the layers' products alone could be computed in a second, 2,048 rows at a time, bf16.

    Every layer has weights of its own, as in the model; the median of several passes.
    """
    config = AutoConfig.from_pretrained(model_directory)
    hidden, inner = config.hidden_size, config.intermediate_size
    kv = hidden * config.num_key_value_heads // config.num_attention_heads
    shapes = [(hidden, hidden), (hidden, kv), (hidden, kv), (hidden, hidden)]
    shapes += [(hidden, inner), (hidden, inner), (inner, hidden)]
    weights = [torch.randn(n, k).bfloat16() for _ in range(config.num_hidden_layers) for k, n in shapes]
    rows = {inputs: torch.randn(ROWS, inputs).bfloat16() for inputs, _ in shapes}
    seconds = []
    for _ in range(REPEATS):
        started_s = time.perf_counter()
        for weight in weights:
            torch.nn.functional.linear(rows[weight.shape[1]], weight)
        seconds.append(time.perf_counter() - started_s)
    return ROWS / statistics.median(seconds)
