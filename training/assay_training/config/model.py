"""What is trained, and how the optimiser goes about it."""

from typing import Annotated, Literal

from pydantic import Field

from assay_training.config.base import Frozen

Decay = Annotated[float, Field(ge=0, lt=1)]


class Lora(Frozen):
    """The adapter.

    Attributes:
        r: rank.
        alpha: scale; the update is multiplied by alpha / r.
        target_modules: names of the linears that get an adapter.
        layers: indices of the layers that get one; None means all. Layers below the lowest need no backward pass.
    """

    r: int = Field(gt=0)
    alpha: int = Field(gt=0)
    target_modules: list[str] = Field(min_length=1)
    layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None


class Adam(Frozen):
    """AdamW, and how a step is cut into forwards.

    Attributes:
        learning_rate: the peak, where it changes.
        betas: of Adam.
        epsilon: of Adam.
        weight_decay: on all trained parameters.
        max_grad_norm: the gradient is clipped to this norm; None for never.
        micro_batch_tokens: tokens in one forward; steps are split to fit, without changing the loss.
        compute_dtype: what matrix products are computed in while training; weights stay fp32.
        checkpoint_steps: steps between two checkpoints to resume from.
    """

    learning_rate: float = Field(gt=0)
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    epsilon: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float | None = Field(1.0, gt=0)
    micro_batch_tokens: int = Field(8192, gt=0)
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    checkpoint_steps: int = Field(100, gt=0)


class Optimiser(Adam):
    """The same with warm-up and a cosine to a tenth of the learning rate (Llama-2 recipe, seeds §12).

    Attributes:
        batch_prompts: prompts (for labelled items and dialogues: items) in one optimiser step, over all processes.
        epochs: passes over the training part.
        warmup_share: share of all steps, at least 5 steps.
    """

    batch_prompts: int = Field(32, gt=0)
    epochs: int = Field(1, gt=0)
    warmup_share: float = Field(0.03, ge=0, lt=1)
