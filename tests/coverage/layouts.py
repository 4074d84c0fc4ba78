"""Tiny random checkpoints in the layouts of published reward models, each with the code that it was published with.

A layout has the class, the tensor names, the files and the keys of `config.json` of its originals, with small numbers.
"""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from tests import checkpoints
from tests.coverage import gated, texts
from tests.coverage.pickled import LAST as LAST_OPTION
from tests.coverage.pickled import PICKLED
from tests.coverage.pickled import publish as publish_pickle

Encode = Callable[[str, str], list[int]]
Forward = Callable[[torch.Tensor], list[float]]


@dataclass(frozen=True)
class Original:
    """What the published code makes of one item.

    Attributes:
        encode: ids of a prompt and its completion.
        forward: ids `[1, T]` to the rewards, one for each signal of the layout.
    """

    encode: Encode
    forward: Forward


@dataclass(frozen=True)
class Layout:
    """A layout, and what a user of Assay does to serve it.

    Attributes:
        publish: writes the checkpoint into a directory.
        signals: keys of each signal, beside those that every signal here has.
        convert: arguments of `assay convert`; None where the directory is served as it is.
    """

    publish: Callable[[Path], Original]
    signals: tuple[dict[str, Any], ...] = ({},)
    convert: tuple[str, ...] | None = None


def write(
    directory: Path,
    model: Any,
    fast: PreTrainedTokenizerFast,
    *,
    dtype: torch.dtype = torch.bfloat16,
    shard: str = "5GB",
    **config: Any,
) -> None:
    """Write a model and its tokenizer, with `config.json` in the spelling of transformers 4."""
    model.to(dtype).save_pretrained(directory, max_shard_size=shard)
    fast.save_pretrained(directory)
    path = directory / "config.json"
    written = json.loads(path.read_text()) | {"transformers_version": "4.44.2", "_name_or_path": "base", **config}
    written["torch_dtype"] = str(dtype).removeprefix("torch.")
    written.pop("dtype", None)
    rope = written.pop("rope_parameters", None)
    if rope is not None and "rope_theta" in rope:
        written["rope_theta"] = rope.pop("rope_theta")
        written["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    elif rope is not None:
        written["rope_parameters"] = rope
    path.write_text(json.dumps(written))


def chat_of(fast: PreTrainedTokenizerFast, tail: str = "") -> Encode:
    """Return the encoding of reward-bench's default pipeline: the chat template, then the tokenizer."""

    def encode(prompt: str, completion: str) -> list[int]:
        chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        text = str(fast.apply_chat_template(chat, tokenize=False)) + tail
        return texts.encode_pieces(fast, text)

    return encode


def classifier_of(directory: Path, outputs: Sequence[int] = (0,)) -> Forward:
    """Return transformers' own classifier of a directory, in fp32."""
    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    model.set_attn_implementation("eager")
    return lambda ids: [float(model(input_ids=ids).logits[0, output]) for output in outputs]


def classifier(
    architecture: str, kind: str, *, outputs: Sequence[int] = (0,), dtype: torch.dtype = torch.bfloat16,
    shard: str = "5GB", config: dict[str, Any] | None = None, **model: Any
) -> Callable[[Path], Original]:  # fmt: skip
    """Return what writes a `…ForSequenceClassification` of transformers."""

    def publish(directory: Path) -> Original:
        fast = texts.build(kind)
        # Qwen and others have more embeddings than tokens.
        sizes = {"vocab_size": len(fast) + 5} if kind == "chatml" else {}
        built = checkpoints.classifier(architecture, fast, num_labels=max(outputs) + 1, **{**sizes, **model})
        write(directory, built, fast, dtype=dtype, shard=shard, **(config or {}))
        return Original(chat_of(fast), classifier_of(directory, outputs))

    return publish


def add_pad(architecture: str, kind: str) -> Callable[[Path], Original]:
    """Return what writes a classifier whose trainer added a pad token, with an embedding of its own, as the last."""

    def publish(directory: Path) -> Original:
        fast = texts.build(kind)
        model = checkpoints.classifier(architecture, fast, pad_token_id=None)
        fast.add_special_tokens({"pad_token": "[PAD]"})
        model.resize_token_embeddings(len(fast))
        model.config.pad_token_id = fast.pad_token_id
        write(directory, model, fast)
        assert model.get_input_embeddings().weight.shape[0] - 1 == fast.pad_token_id
        return Original(chat_of(fast), classifier_of(directory))

    return publish


def layers_of(width: int, neurons: int) -> nn.Sequential:
    """Return a head of two layers with a ReLU between."""
    return nn.Sequential(nn.Linear(width, neurons), nn.ReLU(), nn.Linear(neurons, 1))


def own_head(
    architecture: str,
    kind: str,
    head: nn.Module,
    module: str,
    *,
    name: str,
    prefix: str = "model.",
    lm_head: bool = False,
    tail: str = "",
    before_pad: bool = False,
    config: dict[str, Any] | None = None,
) -> Callable[[Path], Original]:
    """Return what writes a base with a head under the names of a class that transformers does not have.

    Args:
        head: the head, on the hidden states.
        module: name of the head.
        name: name of the class.
        prefix: prefix of the base.
        lm_head: whether the class has kept the output layer of its language model.
        tail: text after the template.
        before_pad: whether the class looks for the first pad, and reads the token before it.
        config: keys that the class adds to `config.json`.
    """

    def publish(directory: Path) -> Original:
        fast = texts.build(kind)
        model = checkpoints.language_model(architecture, fast)
        write(directory, model, fast, architectures=[name], **(config or {}))
        path = directory / "model.safetensors"
        tensors = {
            n.replace("model.", prefix, 1): t for n, t in load_file(path).items() if lm_head or "lm_head" not in n
        }
        torch.manual_seed(1)
        for parameter in head.parameters():
            nn.init.normal_(parameter, std=0.3)
        save_file(tensors | {f"{module}.{n}": p.detach() for n, p in head.named_parameters()}, path, {"format": "pt"})
        # Not `model.float()`: the frequencies of its positions were rounded to bf16 above.
        whole = checkpoints.language_model(architecture, fast)
        whole.load_state_dict(model.state_dict())
        whole.set_attn_implementation("eager")
        base = whole.model

        def forward(ids: torch.Tensor) -> list[float]:
            rewards = head(base(input_ids=ids).last_hidden_state)[0, :, 0]
            if not before_pad:
                return [float(rewards[-1])]
            end = (torch.eq(ids, model.config.pad_token_id).int().argmax(-1) - 1) % ids.shape[-1]
            return [float(rewards[end])]

        return Original(chat_of(fast, tail), forward)

    return publish


def value_layers(architecture: str, kind: str) -> Callable[[Path], Original]:
    """Return what writes a GRM with a value head of two layers."""
    config = {"vhead_layer_type": "mlp", "vhead_num_neurons": 48, "vhead_num_layers": 1}
    return own_head(architecture, kind, layers_of(32, 48), "v_head.summary", name="GRewardModel", config=config)


def token_head(architecture: str, kind: str, tokens: Sequence[str | int]) -> Callable[[Path], Original]:
    """Return what writes a language model whose reward is the logit of a token, or the difference of two."""

    def publish(directory: Path) -> Original:
        fast = texts.build(kind)
        write(directory, checkpoints.language_model(architecture, fast, max_position_embeddings=512), fast)
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        model.set_attn_implementation("eager")
        ids = [token if isinstance(token, int) else fast.convert_tokens_to_ids(token) for token in tokens]

        def forward(text: torch.Tensor) -> list[float]:
            logits = model(input_ids=text).logits[0, -1, ids]
            return [float(logits[0] - logits[1] if len(ids) == 2 else logits[0])]

        encode = texts.ENCODE_JUDGES.get(kind)
        return Original(chat_of(fast) if encode is None else functools.partial(encode, fast), forward)

    return publish


def pair(architecture: str, *, separator: str = "[SEP]", **config: Any) -> Callable[[Path], Original]:
    """Return what writes a cross-encoder, which `tokenizer(query, text)` feeds."""

    def publish(directory: Path) -> Original:
        fast = texts.build_pair(separator)
        write(directory, checkpoints.classifier(architecture, fast, **config), fast, dtype=torch.float32)
        model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
        model.set_attn_implementation("eager")
        typed = architecture == "bert"

        def forward(ids: torch.Tensor) -> list[float]:
            ends = (ids == fast.sep_token_id).int().cumsum(-1)
            types = {"token_type_ids": ((ends - (ids == fast.sep_token_id).int()) > 0).long()} if typed else {}
            return [float(model(input_ids=ids, **types).logits[0, 0])]

        return Original(lambda prompt, completion: fast(prompt, completion)["input_ids"], forward)

    return publish


def shard_pickles(publish: Callable[[Path], Original]) -> Callable[[Path], Original]:
    """Return what writes a checkpoint as two pickles with an index."""

    def publish_pickles(directory: Path) -> Original:
        original = publish(directory)
        path = directory / "model.safetensors"
        names = sorted(tensors := load_file(path))
        path.unlink()
        shards = {f"pytorch_model-0000{n}-of-00002.bin": names[n - 1 :: 2] for n in (1, 2)}
        for file, held in shards.items():
            torch.save({name: tensors[name] for name in held}, directory / file)
        index = {"metadata": {"total_size": 1}, "weight_map": {name: f for f, held in shards.items() for name in held}}
        (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        return original

    return publish_pickles


def pickled(name: str) -> Callable[[Path], Original]:
    """Return what writes a checkpoint of a class that saves pickles."""

    def publish(directory: Path) -> Original:
        model = PICKLED[name].build()
        publish_pickle(directory, model, **PICKLED[name].config)
        return Original(chat_of(checkpoints.decoder_tokenizer()), lambda ids: [model(tuple(ids[0].tolist()))])

    return publish


def gate(shape: str) -> Callable[[Path], Original]:
    """Return what writes a checkpoint whose objectives a gating network weighs."""

    def publish(directory: Path) -> Original:
        forward = gated.publish(directory, shape)
        return Original(chat_of(PreTrainedTokenizerFast.from_pretrained(directory)), forward)

    return publish


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
REMOTE_QWEN = {
    "auto_map": {
        "AutoConfig": "configuration_qwen2_rm.Qwen2RMConfig",
        "AutoModel": "modeling_qwen2_rm.Qwen2ForRewardModel",
    }
}
LAST = {"score_position": "last_token"}


def read_tokens(*tokens: str | int) -> dict[str, Any]:
    """Return the keys of a signal that reads tokens of a language model."""
    return LAST | {"head": {"tokens": list(tokens)}, "max_length": 512}


LAYOUTS: dict[str, Layout] = {
    "llama-classifier": Layout(
        classifier(
            "llama", "llama3", shard="40KB", rope_parameters=LLAMA3_ROPE, config={"pretraining_tp": 1}
        )
    ),
    "llama-padded": Layout(add_pad("llama", "llama3")),
    "mistral-classifier": Layout(add_pad("mistral", "mistral")),
    "mistral-outputs": Layout(
        classifier("mistral", "dpa", outputs=(0, 9), config={"problem_type": "regression"}),
        ({"output": 0}, {"output": 9}),
    ),
    "gemma-classifier": Layout(
        classifier("gemma", "gemma", config={"hidden_activation": None, "hidden_act": "gelu"}),
    ),
    "gemma2-classifier": Layout(
        classifier("gemma2", "gemma", dtype=torch.float16, config={"cache_implementation": "hybrid"})
    ),
    "qwen2-classifier": Layout(
        classifier("qwen2", "chatml", use_sliding_window=False, config={"sliding_window": 131072})
    ),
    "qwen3-classifier": Layout(classifier("qwen3", "qwen3", max_position_embeddings=512)),
    "gpt-neox-classifier": Layout(classifier("gpt_neox", "chatml", dtype=torch.float32)),
    "llama-value-layers": Layout(value_layers("llama", "llama3"), (LAST,)),
    "gemma-value-layers": Layout(value_layers("gemma", "gemma"), (LAST,)),
    "gemma2-value-layers": Layout(value_layers("gemma2", "gemma"), (LAST,)),
    "llama-score-layers": Layout(
        own_head(
            "llama", "llama3", layers_of(32, 32), "score", name="INFORMForSequenceClassification", before_pad=True
        ),
        (LAST,),
    ),
    "qwen2-score-layers": Layout(
        own_head("qwen2", "chatml", layers_of(32, 32), "score", name="Qwen2ForRewardModel", config=REMOTE_QWEN),
        (LAST | {"code": "ignore"},),
    ),
    "qwen2-causal-rm": Layout(
        own_head("qwen2", "chatml", nn.Linear(32, 1), "v_head.summary", name="Qwen2ForCausalRM", lm_head=True), (LAST,)
    ),
    "openrlhf": Layout(
        own_head(
            "llama",
            "llama3",
            nn.Linear(32, 1, bias=False),
            "value_head",
            name="RewardModel",
            config={"value_head_prefix": "value_head", "mean": 0.75, "std": 2.5},
            tail="<|end_of_text|>",
        ),
        (LAST | {"eos": "append", "moments": "config"},),
    ),
    # Letters stand for the words "yes", "no" and "Yes", each of which is several tokens of a tiny vocabulary.
    "qwen3-reranker": Layout(token_head("qwen3", "qwen3-reranker", ["y", "n"]), (read_tokens("y", "n"),)),
    "qwen3-reranker-one-logit": Layout(classifier("qwen3", "qwen3-reranker", max_position_embeddings=512)),
    "mxbai-rerank-v2": Layout(token_head("qwen2", "mxbai", ["1", "0"]), (read_tokens("1", "0"),)),
    "bge-reranker-v2-gemma": Layout(token_head("gemma", "bge-gemma", ["Y"]), (read_tokens("Y"),)),
    "token-of-the-output-layer": Layout(token_head("llama", "llama3", [0]), (read_tokens(0),)),
    "deberta-pair": Layout(pair("deberta-v2", type_vocab_size=0, pooler_dropout=0, pooler_hidden_act="gelu")),
    "bert-pair": Layout(pair("bert"), ({"token_types": "second_after_sep"},)),
    "xlm-roberta-pair": Layout(pair("xlm-roberta", separator="</s>", type_vocab_size=1)),
    "modernbert-pair": Layout(pair("modernbert", classifier_pooling="mean")),
    "llama-pickle": Layout(shard_pickles(classifier("llama", "llama3", rope_parameters=LLAMA3_ROPE)), convert=()),
    "olmo2-classifier": Layout(shard_pickles(classifier("olmo2", "chatml")), convert=()),
    "pickled-language-model": Layout(
        shard_pickles(token_head("mistral", "mistral", [7, 9])), ({"head": {"tokens": [7, 9]}},), LAST_OPTION
    ),
    **{name: Layout(gate(name), gated.keys_of(name)) for name in gated.GATED if name != "ldl"},
    "ldl": Layout(gate("ldl"), convert=()),
    **{name: Layout(pickled(name), convert=PICKLED[name].arguments) for name in PICKLED},
}  # fmt: skip
