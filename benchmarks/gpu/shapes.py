"""Build reward models with the shapes of published ones and random weights, and the sequences that they score."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import AutoModel, LlamaConfig, PreTrainedConfig, PreTrainedModel, Qwen3Config

from assay_service.scoring.head import Head
from assay_service.scoring.kernels.choose import choose_backend
from assay_service.scoring.kernels.numbers import use_numbers
from assay_service.scoring.kernels.torch_segments import NAME as PACKED
from assay_service.scoring.layout import Span, TokenSequence
from assay_service.scoring.model import RewardModel

SIGNAL = "s"
PROMPT_TOKENS, COMPLETION_TOKENS = 200, 100

_LLAMA_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@dataclass(frozen=True, slots=True)
class Shape:
    """The shape of a model, and how much is measured of it.

    Attributes:
        config: configuration of transformers.
        items: number of items of a round without arrivals.
        try_s: seconds for which one rate of arrivals is tried.
        offset_step: distance of the offsets at which invariance is tried.
        most_copies: largest number of copies of the tried sequences in one batch.
        product: side of the square product that measures the card.
        batch_tokens: token budgets of a batch that are tried.
    """

    config: PreTrainedConfig
    items: int = 512
    try_s: float = 5.0
    offset_step: int = 1
    most_copies: int = 24
    product: int = 8192
    batch_tokens: tuple[int, ...] = field(default=(4096, 8192, 16384))


# Without the output layer, which a reward model does not have.
SHAPES = {
    "qwen3-0.6b": Shape(
        Qwen3Config(
            num_hidden_layers=28,
            hidden_size=1024,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            intermediate_size=3072,
            vocab_size=151936,
            max_position_embeddings=40960,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        ),
        items=2048,
    ),
    "llama-3.1-8b": Shape(
        LlamaConfig(
            num_hidden_layers=32,
            hidden_size=4096,
            num_attention_heads=32,
            num_key_value_heads=8,
            intermediate_size=14336,
            vocab_size=128256,
            max_position_embeddings=131072,
            rms_norm_eps=1e-5,
            rope_parameters=_LLAMA_ROPE,
        ),
        items=256,
        offset_step=3,
    ),
    "tiny": Shape(
        Qwen3Config(
            num_hidden_layers=2,
            hidden_size=64,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            intermediate_size=96,
            vocab_size=512,
            max_position_embeddings=1024,
        ),
        items=16,
        try_s=0.3,
        offset_step=40,
        most_copies=2,
        product=64,
        batch_tokens=(1024,),
    ),
}


class PlainModel(RewardModel):
    """The same model and attention, without what makes rows independent of each other."""

    def make_invariant(self) -> None:
        """Choose the back end only, and leave products and activations as torch computes them."""
        use_numbers(self.base, self.compute)
        self._backend, self.kernels = choose_backend(self.base, self.dtype)
        self._backend.prepare(self.base)


def choose_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 on a card; on a CPU, where only the code is tried, float32."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def build_transformer(shape: Shape, device: torch.device, attention: str = "sdpa") -> PreTrainedModel:
    """Build the bare model with random weights, which are the same in every call on one device."""
    torch.manual_seed(0)
    with device:
        dtype = choose_dtype(device)
        model: PreTrainedModel = AutoModel.from_config(shape.config, dtype=dtype, attn_implementation=attention)
    return model.eval()


def build_model(shape: Shape, device: torch.device, kind: type[RewardModel] = RewardModel) -> RewardModel:
    """Build the reward model, whose head adds all hidden numbers, and prepare it for scoring."""
    model = kind(build_transformer(shape, device, PACKED), device)
    model.add_signal(SIGNAL, Head(torch.ones(1, model.hidden_size), None))
    model.make_invariant()
    return model


def make_group(draw: random.Random, vocabulary: int, prompt: int, completions: Sequence[int]) -> list[TokenSequence]:
    """Make the sequences of one prompt and its completions, of random ids and the given numbers of tokens."""
    ids = draw.choices(range(vocabulary), k=prompt)
    made = [(*ids, *draw.choices(range(vocabulary), k=tokens)) for tokens in completions]
    return [TokenSequence(row, prompt, Span(len(row) - 1, len(row))) for row in made]


def make_items(shape: Shape, seed: int, items: int, completions: int = 1) -> list[TokenSequence]:
    """Make items of 300 tokens; `completions` of them have one prompt."""
    draw = random.Random(seed)
    size = int(shape.config.vocab_size)
    lengths = [COMPLETION_TOKENS] * completions
    groups = (make_group(draw, size, PROMPT_TOKENS, lengths) for _ in range(max(1, items // completions)))
    return [sequence for group in groups for sequence in group]


def count_flop(config: PreTrainedConfig, tokens: int) -> float:
    """Count the floating-point operations of one sequence of `tokens` tokens: products of the layers and attention."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    query, value = config.num_attention_heads * head, config.num_key_value_heads * head
    weights = config.hidden_size * (2 * query + 2 * value + 3 * config.intermediate_size)
    # A token sees half of the sequence on average, in two products of two operations each.
    attention = 2 * 2 * query * (tokens + 1) / 2
    return float(config.num_hidden_layers * tokens * (2 * weights + attention))
