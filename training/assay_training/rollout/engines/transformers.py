"""Sample completions by transformers' own generation: on CPUs, in tests, and where vLLM is not installed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, GenerationConfig

from assay_training.rollout.completion import Completion, Ids
from assay_training.rollout.engines.base import Sampling


class TransformersEngine:
    """An engine that holds its own fp32 copy of the policy in this process.

    Args:
        base: checkpoint of the base.
        sampling: settings of the sampling.
        device: device of the weights.
    """

    def __init__(self, base: Path, sampling: Sampling, device: torch.device) -> None:
        self._base: Any = AutoModelForCausalLM.from_pretrained(
            base, dtype=torch.float32, use_safetensors=True, local_files_only=True, trust_remote_code=False
        )
        self._base.to(device).eval()
        self._model = self._base
        self._device, self._eos = device, sampling.eos
        # Replaces the checkpoint's own settings, which may contain top-p, top-k or a repetition penalty.
        self._base.generation_config = GenerationConfig(
            do_sample=True,
            temperature=sampling.temperature,
            top_p=1.0,
            top_k=0,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=self._eos,
            pad_token_id=self._eos,  # tokens after the first EOS are cut off
        )

    def push(self, adapter: Path) -> None:
        """See `Engine.push`."""
        if isinstance(self._model, PeftModel):
            self._base = self._model.unload()
        self._model = PeftModel.from_pretrained(self._base, adapter).eval()

    def generate(self, prompts: Sequence[Ids], seed: int) -> list[Completion]:
        """See `Engine.generate`."""
        width = max(map(len, prompts))
        # Padded on the left, because all prompts must end where the completions begin; the mask hides the padding.
        ids = torch.tensor([[self._eos] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(seed)
            out: Any = self._model.generate(
                input_ids=ids.to(self._device),
                attention_mask=mask.to(self._device),
                return_dict_in_generate=True,
                output_scores=True,
            )
            logprobs = self._model.compute_transition_scores(out.sequences, out.scores, normalize_logits=True)
        sampled = out.sequences[:, width:].tolist()
        return [
            self._build_completion(prompt, ids, row)
            for prompt, ids, row in zip(prompts, sampled, logprobs.tolist(), strict=True)
        ]

    def close(self) -> None:
        """See `Engine.close`."""
        del self._model, self._base

    def _build_completion(self, prompt: Ids, ids: list[int], logprobs: list[float]) -> Completion:
        """Build a completion from a row of generated ids, cut after its first EOS."""
        ended = self._eos in ids
        count = ids.index(self._eos) + 1 if ended else len(ids)
        return Completion(prompt, tuple(ids[:count]), tuple(logprobs[:count]), "stop" if ended else "length")
