"""Decide in which numbers a base computes, and check what is declared about it; pure, and without torch."""

from typing import Literal

from assay_service.errors import StartError

Dtype = Literal["float32", "bfloat16", "float16"]
Number = Literal["float32", "bfloat16", "float16", "int8"]
# `auto` is decided when a model is loaded, because it depends on the machine.
Compute = Literal["auto", "float32", "bfloat16", "float16", "int8"]


def check_compute(declared: Compute, dtype: str, engine: str) -> None:
    """Refuse numbers that would round the weights, and those that an engine does not compute in.

    Args:
        declared: numbers that the configuration or the manifest declares.
        dtype: dtype of the base's weights in memory.
        engine: engine of the forward pass.

    Raises:
        StartError: the weights would be rounded, or vLLM is to compute in another dtype than that of the weights.
    """
    if engine == "vllm" and declared not in ("auto", dtype):
        raise StartError(
            f"compute: the manifest says {declared!r}, but `engine: vllm` computes in `dtype: {dtype}`; declare "
            f"`dtype: {declared}`, or remove `engine: vllm`"
        )
    if declared not in ("auto", "float32", "int8", dtype):
        raise StartError(
            f"compute: {declared} would round weights of `dtype: {dtype}`; declare `dtype: {declared}` beside it, or "
            "`compute: auto`"
        )


def decide_compute(declared: Compute, dtype: Dtype, device: str, *, has_units: bool) -> Number:
    """Return the numbers in which a base computes.

    Args:
        declared: numbers that the configuration or the manifest declares; `check_compute` has accepted them.
        dtype: dtype of the base's weights in memory.
        device: kind of the device, as torch names it.
        has_units: whether the device has instructions for products in `dtype`.

    Raises:
        StartError: integers are declared for another device than a CPU.
    """
    if declared == "int8" and device != "cpu":
        raise StartError(f"compute: int8 is only for CPUs, not for {device}; remove it, or declare `device: cpu`")
    if declared != "auto":
        return declared
    # float32 loses nothing, and is several times faster than a half precision that is emulated.
    return dtype if has_units else "float32"
