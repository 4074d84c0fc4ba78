"""Declare which weights a run trains, and the optimizer that trains them."""

from typing import Annotated, Literal

from pydantic import Field

from assay_training.config.base import Frozen

Decay = Annotated[float, Field(ge=0, lt=1)]


class Lora(Frozen):
    """A LoRA adapter ([LoRA]): its rank, its scale and the layers that it changes.

    Attributes:
        r: The rank of the update.
        alpha: The scale; the update is multiplied by alpha / r.
        target_modules: The names of the linear layers that get an adapter, such as `q_proj`.
        layers: The indices of layers with an adapter, from 0; null means all. Lower layers need no backward pass.
    """

    r: int = Field(gt=0)
    alpha: int = Field(gt=0)
    target_modules: list[str] = Field(min_length=1)
    layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None


class Adam(Frozen):
    """The AdamW optimizer, and the division of its steps into micro-batches.

    Attributes:
        learning_rate: The learning rate, or its peak if there is a schedule.
        betas: Adam's decay rates of the first and the second moment.
        epsilon: Adam's epsilon.
        weight_decay: The decoupled weight decay on all trained parameters.
        max_grad_norm: The norm to which larger gradients are clipped; null never clips.
        micro_batch_tokens: The tokens in one forward pass; larger steps are split, without changing the loss.
        compute_dtype: The dtype of matrix products; weights stay in float32. `auto` is bfloat16 where the device has
            it, else float32.
        checkpoint_steps: The number of steps between two saved states, from which an interrupted run resumes.
    """

    learning_rate: float = Field(gt=0)
    betas: tuple[Decay, Decay] = (0.9, 0.95)  # as [Llama 2] section 3.2.2; torch's default is 0.999
    epsilon: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float | None = Field(1.0, gt=0)
    micro_batch_tokens: int = Field(8192, gt=0)
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    checkpoint_steps: int = Field(100, gt=0)


class OptimizerConfig(Adam):
    """AdamW with warm-up and a cosine decay to a tenth of the learning rate ([Llama 2] section 3.2.2).

    Attributes:
        batch_prompts: The prompts in one step, over all processes; for labels and dialogues, the items.
        epochs: The number of passes over the training part.
        warmup_share: The share of steps over which the learning rate rises, and at least 5 steps.
    """

    batch_prompts: int = Field(32, gt=0)
    epochs: int = Field(1, gt=0)
    warmup_share: float = Field(0.03, ge=0, lt=1)
