"""Many answers of a policy to each of some prompts, by vLLM, as rows for `assay evaluate best-of-n completions:OUT`.

    .venv-vllm/bin/python -m assay_experiments.rollouts POLICY PROMPTS OUT

PROMPTS are JSON lines with `prompt` or `text`. Sampled at temperature 1 from the whole distribution; what has not
ended after `--tokens`, or is blank, is left out and counted: it is not what the policy answers.
"""

import gzip
import json
from pathlib import Path
from typing import Annotated

import typer


def prompts_of(path: Path, count: int) -> list[str]:
    """The first `count` prompts of a file."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line, _ in zip(stream, range(count), strict=False)]
    return [row.get("prompt") or row["text"] for row in rows]


def main(
    policy: Annotated[Path, typer.Argument(exists=True)],
    prompts: Annotated[Path, typer.Argument(exists=True)],
    out: Path,
    count: Annotated[int, typer.Option(help="Prompts.")] = 40,
    samples: Annotated[int, typer.Option(help="Of each.")] = 384,
    tokens: Annotated[int, typer.Option(help="At most, in an answer.")] = 96,
    seed: int = 1,
) -> None:
    """Samples and writes them."""
    from vllm import LLM, SamplingParams  # noqa: PLC0415 - `policies.py` reads prompts without it

    engine = LLM(model=str(policy), dtype="float32", max_model_len=512, seed=seed, gpu_memory_utilization=0.1)
    asked = prompts_of(prompts, count)
    sampling = SamplingParams(n=samples, temperature=1.0, top_p=1.0, top_k=0, max_tokens=tokens)
    answered = engine.chat([[{"role": "user", "content": prompt}] for prompt in asked], sampling)
    whole = [[o.text for o in of.outputs if o.finish_reason == "stop" and o.text.strip()] for of in answered]
    with out.open("w", encoding="utf-8") as stream:
        for prompt, texts in zip(asked, whole, strict=True):
            if len(texts) > 1:
                stream.write(json.dumps({"prompt": prompt, "completions": texts}, ensure_ascii=False) + "\n")
    kept = sum(map(len, whole))
    typer.echo(f"{kept} of {len(asked) * samples} answers to {len(asked)} prompts ended within {tokens} tokens")


if __name__ == "__main__":
    typer.run(main)
