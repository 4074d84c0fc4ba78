"""What is trained, and how the optimizer goes about it."""

from typing import Annotated, Literal

from pydantic import Field

from assay_training.config.base import Frozen

Decay = Annotated[float, Field(ge=0, lt=1)]


class Lora(Frozen):
    """The adapter.

    Attributes:
        r: The rank.
        alpha: The scale: the update is multiplied by alpha / r.
        target_modules: The names of the linear layers that get an adapter, such as `q_proj`.
        layers: The indices of the layers that get one, counted from 0; null means all of them. Layers below the lowest
            index need no backward pass.
    """

    r: int = Field(gt=0)
    alpha: int = Field(gt=0)
    target_modules: list[str] = Field(min_length=1)
    layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None


class Adam(Frozen):
    """AdamW, and how a step is cut into forwards.

    Attributes:
        learning_rate: The learning rate; its peak, where there is a schedule.
        betas: Adam's two decay rates.
        epsilon: Adam's epsilon.
        weight_decay: The decoupled weight decay on all trained parameters.
        max_grad_norm: The norm that gradients are clipped to; null never clips.
        micro_batch_tokens: The tokens in one forward; steps are split to fit, without changing the loss.
        compute_dtype: The dtype of matrix products while training; weights stay in float32.
        checkpoint_steps: The steps between two states that a killed run can resume from.
    """

    learning_rate: float = Field(gt=0)
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    epsilon: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float | None = Field(1.0, gt=0)
    micro_batch_tokens: int = Field(8192, gt=0)
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    checkpoint_steps: int = Field(100, gt=0)


class OptimizerConfig(Adam):
    """The same with warm-up and a cosine to a tenth of the learning rate ([Llama 2] section 3.2.2).

    Attributes:
        batch_prompts: The prompts in one step over all processes; of labels and dialogues, the items.
        epochs: The passes over the training part.
        warmup_share: The share of all steps in which the learning rate rises, at least 5 steps.
    """

    batch_prompts: int = Field(32, gt=0)
    epochs: int = Field(1, gt=0)
    warmup_share: float = Field(0.03, ge=0, lt=1)
