"""Sample many completions of each prompt with vLLM, as rows for `assay evaluate best-of-n completions:OUT`.

    .venv-vllm/bin/python -m assay_experiments.rollouts POLICY PROMPTS OUT

PROMPTS are JSON lines with `prompt` or `text`. Sampling is at temperature 1 from the whole distribution. A completion
that is blank or has not ended after `--tokens` is dropped and counted, because it is not a complete
output of the policy.
"""

import gzip
import json
from pathlib import Path
from typing import Annotated

import typer


def read_prompts(path: Path, count: int) -> list[str]:
    """Read the first `count` prompts of a file of JSON lines, gzipped or not."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line, _ in zip(stream, range(count), strict=False)]
    return [row.get("prompt") or row["text"] for row in rows]


def main(
    policy: Annotated[Path, typer.Argument(exists=True)],
    prompts: Annotated[Path, typer.Argument(exists=True)],
    out: Path,
    count: Annotated[int, typer.Option(help="The number of prompts, from the start of the file.")] = 40,
    samples: Annotated[int, typer.Option(help="The number of completions of each prompt.")] = 384,
    tokens: Annotated[int, typer.Option(help="The largest number of tokens of a completion.")] = 96,
    seed: int = 1,
) -> None:
    """Sample the completions and write them to a file."""
    from vllm import LLM, SamplingParams  # noqa: PLC0415 - `policies.py` reads prompts without it

    engine = LLM(model=str(policy), dtype="float32", max_model_len=512, seed=seed, gpu_memory_utilization=0.1)
    texts = read_prompts(prompts, count)
    sampling = SamplingParams(n=samples, temperature=1.0, top_p=1.0, top_k=0, max_tokens=tokens)
    generated = engine.chat([[{"role": "user", "content": prompt}] for prompt in texts], sampling)
    whole = [[o.text for o in request.outputs if o.finish_reason == "stop" and o.text.strip()] for request in generated]
    with out.open("w", encoding="utf-8") as stream:
        for prompt, completions in zip(texts, whole, strict=True):
            if len(completions) > 1:  # a single completion has nothing to be the best of
                stream.write(json.dumps({"prompt": prompt, "completions": completions}, ensure_ascii=False) + "\n")
    kept = sum(map(len, whole))
    typer.echo(f"{kept} of {len(texts) * samples} completions of {len(texts)} prompts ended within {tokens} tokens")


if __name__ == "__main__":
    typer.run(main)
