"""Measure one model on one device, a part at a time: each part returns its numbers, or raises an error."""

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from assay_service.engine.admission import QueueLimits
from assay_service.engine.engine import Engine
from assay_service.engine.job import Task
from assay_service.scoring.kernels import varlen
from assay_service.scoring.layout import TokenSequence
from assay_service.scoring.model import RewardModel
from assay_service.scoring.trunk import Trunk
from assay_service.telemetry.metrics import Metrics
from benchmarks.gpu.shapes import (
    COMPLETION_TOKENS,
    PROMPT_TOKENS,
    SIGNAL,
    PlainModel,
    Shape,
    build_model,
    build_transformer,
    count_flop,
    make_group,
    make_items,
)

TOKENS = PROMPT_TOKENS + COMPLETION_TOKENS
P99_S = 0.5
FRACTIONS = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
ROUNDS = 3
MAX_FORWARD_S = 60.0
# Largest difference to transformers in float32, relative to the deviation of the logits.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05}
# Dense bf16 operations per second by NVIDIA's data sheets; the first name that the card's name contains counts.
DATA_SHEETS = (
    ("H100 PCIe", 756e12), ("H100", 989e12), ("H200", 989e12), ("A100", 312e12), ("L40S", 362e12),
)  # fmt: skip

Numbers = dict[str, Any]


class Subject:
    """The model that is measured.

    Args:
        shape: shape of the model.
        device: device on which it computes.
    """

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.shape = shape
        self.device = device
        self.model = build_model(shape, device)
        self._fastest: tuple[float, int] | None = None

    def find_fastest(self) -> tuple[float, int]:
        """Return the items/s of independent items without arrivals, and the token budget that gives the most."""
        if self._fastest is None:
            items = make_items(self.shape, 1, self.shape.items)
            measure_rate(self.model, items[: len(items) // 8 + 1], self.shape.batch_tokens[0])  # warms up
            self._fastest = max((measure_rate(self.model, items, size), size) for size in self.shape.batch_tokens)
        return self._fastest


def measure_rate(model: RewardModel, items: Sequence[TokenSequence], batch_tokens: int) -> float:
    """Measure the items/s of batches of at most `batch_tokens` tokens, one after the other."""
    step = max(1, batch_tokens // TOKENS)
    began_s = time.perf_counter()
    with torch.inference_mode():
        for start in range(0, len(items), step):
            model.read(items[start : start + step], [SIGNAL])  # its numbers are on the CPU, so the device has finished
    return len(items) / (time.perf_counter() - began_s)


def check_parity(subject: Subject) -> Numbers:
    """Compare logits with transformers' own forward pass in float32, one item at a time, on the same weights.

    Raises:
        ValueError: a logit is not finite, or all are equal.
    """
    draw = random.Random(2)
    size = int(subject.shape.config.vocab_size)
    groups = [make_group(draw, size, draw.randint(1, 150), [draw.randint(1, 150) for _ in range(2)]) for _ in range(16)]
    items = [sequence for group in groups for sequence in group]
    with torch.inference_mode():
        ours = subject.model.logits(items, SIGNAL).double().cpu()
        reference = build_transformer(subject.shape, subject.device)
        theirs = read_alone(reference, items)
        exact = read_alone(reference.float(), items)
    del reference
    free_memory()
    deviation = float(exact.std())
    allowed = max(TOLERANCE[subject.model.dtype] * deviation, 2 * float((theirs - exact).abs().max()))
    apart = float((ours - exact).abs().max())
    if not (torch.isfinite(ours).all() and torch.isfinite(exact).all() and deviation > 0):
        raise ValueError("a logit is not finite, or all are equal")
    return {
        "passed": apart <= allowed,
        "largest difference": apart,
        "allowed": allowed,
        "of transformers in the same dtype": float((theirs - exact).abs().max()),
        "deviation of the logits": deviation,
        "items": len(items),
    }


def read_alone(model: PreTrainedModel, items: Sequence[TokenSequence]) -> torch.Tensor:
    """Return the logits of items by transformers, one at a time, float64 `[n]`: the sums of the last hidden states."""
    states = (model(input_ids=torch.tensor([item.ids], device=model.device)).last_hidden_state for item in items)
    return torch.stack([state[0, -1].double().sum().cpu() for state in states])


def check_invariance(subject: Subject) -> Numbers:
    """Compare the bits of sequences alone with those behind other sequences, and in batches of other sizes."""
    draw = random.Random(3)
    size = int(subject.shape.config.vocab_size)
    groups = [(1, (1, 63)), (0, (17,)), (64, (64, 1)), (90, (38, 210)), (300, (213,))]
    items = [item for prompt, lengths in groups for item in make_group(draw, size, prompt, lengths)]
    read = _Reader(subject.model)
    alone = [read([item])[0] for item in items]
    compared = different = 0
    offsets = range(0, 2 * 64, subject.shape.offset_step)
    for offset in offsets:
        before = make_group(draw, size, 0, [offset]) if offset else []
        found = read([*before, *items])[len(before) :]
        compared += len(items)
        different += sum(a != b for a, b in zip(alone, found, strict=True))
    copies = sorted({c for c in (1, 2, 3, 4, 6, 8, 12, 16, 24) if c <= subject.shape.most_copies})
    for count in copies:
        order = draw.sample(range(len(items)), len(items)) * count
        draw.shuffle(order)
        found = read([items[i] for i in order])
        compared += len(order)
        different += sum(alone[i] != number for i, number in zip(order, found, strict=True))
    return {
        "passed": different == 0,
        "different": different,
        "compared": compared,
        "offsets": len(offsets),
        "batch sizes": [count * len(items) for count in copies],
    }


class _Reader:
    """Reads logits as numbers.

    Args:
        model: the model.
    """

    def __init__(self, model: RewardModel) -> None:
        self._model = model

    def __call__(self, items: Sequence[TokenSequence]) -> list[float]:
        """Return the logits of items in one batch; a NaN raises a ValueError, since it equals nothing."""
        with torch.inference_mode():
            found = [float(number) for number in self._model.logits(items, SIGNAL).tolist()]
        if any(math.isnan(number) for number in found):
            raise ValueError("a logit is not a number")
        return found


def measure_latency(subject: Subject) -> Numbers:
    """Find the highest rate of arrivals, of those tried, at which 99 of 100 items are finished in time.

    Items arrive at random times (a Poisson process) at the service's engine, without HTTP and without tokenization.

    Raises:
        ValueError: even at the lowest rate it takes too long.
    """
    capacity, batch_tokens = subject.find_fastest()
    tried = []
    for fraction in FRACTIONS:
        rate = fraction * capacity
        items = make_items(subject.shape, 4, max(20, int(rate * subject.shape.try_s)))
        p99_s = measure_p99(subject.model, items, rate, batch_tokens)
        tried.append({"items/s": rate, "P99 ms": 1000 * p99_s})
        if p99_s <= P99_S:
            return {"items/s": rate, "P99 ms": 1000 * p99_s, "batch tokens": batch_tokens, "tried": tried}
    raise ValueError(f"no rate that was tried has P99 <= {1000 * P99_S:.0f} ms: {tried}")


def measure_p99(model: RewardModel, items: Sequence[TokenSequence], rate: float, batch_tokens: int) -> float:
    """Measure the time within which 99 of 100 items are finished, in seconds, at `rate` arrivals per second."""
    draw = random.Random(5)
    trunk = Trunk(SIGNAL, model, (SIGNAL,))
    seconds: list[float] = []
    with run_engine(batch_tokens) as engine:
        due_s = time.monotonic()
        futures: list[Future[Any]] = []
        for item in items:
            due_s += draw.expovariate(rate)
            time.sleep(max(0.0, due_s - time.monotonic()))
            (future,) = engine.submit([Task(trunk, item, None)])
            future.add_done_callback(_note_finish(seconds, due_s))
            futures.append(future)
        for future in futures:
            future.result()  # raises the error of an item that failed
    return statistics.quantiles(seconds, n=100, method="inclusive")[98]


def _note_finish(seconds: list[float], due_s: float) -> Callable[[Any], None]:
    return lambda _: seconds.append(time.monotonic() - due_s)


@contextmanager
def run_engine(batch_tokens: int) -> Iterator[Engine]:
    """Run an engine without a cache and without limits of its queue."""
    engine = Engine(
        max_batch_tokens=batch_tokens,
        limits=QueueLimits(),
        cache_bytes=0,
        max_forward_s=MAX_FORWARD_S,
        metrics=Metrics(),
        on_failure=lambda: None,
    )
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


def measure_best_of_16(subject: Subject) -> Numbers:
    """Measure the items/s of 16 completions of each prompt, beside those of independent items of the same length."""
    alone, batch_tokens = subject.find_fastest()
    # The prompt is computed once, so a batch of the same number of computed tokens has more items.
    computed = PROMPT_TOKENS / 16 + COMPLETION_TOKENS
    items = make_items(subject.shape, 6, 2 * subject.shape.items, completions=16)
    rate = measure_rate(subject.model, items, int(batch_tokens * TOKENS / computed) // (16 * TOKENS) * 16 * TOKENS)
    return {"items/s": rate, "of independent items": alone, "ratio": rate / alone}


def measure_share(subject: Subject) -> Numbers:
    """Measure which share of the device's rate of bf16 products the fastest batches reach."""
    rate, batch_tokens = subject.find_fastest()
    flops = rate * count_flop(subject.shape.config, TOKENS)
    product = measure_product(subject.device, subject.shape.product)
    name = torch.cuda.get_device_name(subject.device) if subject.device.type == "cuda" else ""
    sheet = next((value for known, value in DATA_SHEETS if known in name), None)
    return {
        "items/s": rate,
        "batch tokens": batch_tokens,
        "TFLOP/s": flops / 1e12,
        "TFLOP/s of one large product": product / 1e12,
        "share of one large product": flops / product,
        "share of the data sheet": None if sheet is None else flops / sheet,
    }


def measure_product(device: torch.device, side: int) -> float:
    """Measure the operations per second of a square product of bf16; the best of several."""
    left, right = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    seconds = []
    for _ in range(8):
        began_s = time.perf_counter()
        product = left @ right
        product[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - began_s)
    return 2 * side**3 / min(seconds)


def measure_cost(subject: Subject) -> Numbers:
    """Measure how much longer the same items take than without what makes rows independent, in alternating rounds."""
    _, batch_tokens = subject.find_fastest()
    items = make_items(subject.shape, 7, subject.shape.items)
    with use_splits():
        plain = build_model(subject.shape, subject.device, PlainModel)
        measure_rate(plain, items[: len(items) // 4 + 1], batch_tokens)
    ours, theirs = [], []
    for _ in range(ROUNDS):
        ours.append(measure_rate(subject.model, items, batch_tokens))
        with use_splits():
            theirs.append(measure_rate(plain, items, batch_tokens))
    del plain
    free_memory()
    return {
        "more time": statistics.median(b / a for a, b in zip(ours, theirs, strict=True)) - 1,
        "items/s": statistics.median(ours),
        "items/s without invariance": statistics.median(theirs),
    }


@contextmanager
def use_splits() -> Iterator[None]:
    """Let FlashAttention split the keys as it likes, within the block."""
    one_split, varlen._ONE_SPLIT = varlen._ONE_SPLIT, {}
    try:
        yield
    finally:
        varlen._ONE_SPLIT = one_split


def free_memory() -> None:
    """Return the memory of dropped tensors to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


PARTS: dict[str, Callable[[Subject], Numbers]] = {
    "parity": check_parity,
    "invariance": check_invariance,
    "share": measure_share,
    "latency": measure_latency,
    "best of 16": measure_best_of_16,
    "cost": measure_cost,
}
