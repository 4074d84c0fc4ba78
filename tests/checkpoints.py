"""Tiny real checkpoints, made on disk: random weights, real tokenizers, real files."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

CHATML = (
    "{%- for m in messages -%}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant\n{% endif -%}"
)
LLAMA3 = (
    "{{ '<|bos|>' }}"
    "{%- for m in messages -%}<|im_start|>{{ m['role'] }}\n\n{{ m['content'] | trim }}<|im_end|>{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant\n\n{%- endif -%}"
)
ENCODER = (
    "{%- for m in messages -%}{%- if m['role'] not in ['user', 'assistant'] -%}{{ raise_exception('unknown role') }}"
    "{%- endif -%}{%- if loop.first -%}[CLS]{%- endif -%}{{ m['role'] }}: {{ m['content'] }}[SEP]{%- endfor -%}"
    "{%- if add_generation_prompt -%}assistant:{%- endif -%}"
)
PAIR = (
    "{{ '[CLS]' + messages[0]['content'] + '[SEP]' }}"
    "{% if not add_generation_prompt %}{{ messages[-1]['content'] + '[SEP]' }}{% endif %}"
)
CORPUS = [
    "The quick brown fox jumps over the lazy dog. user assistant system",
    "How do I bake bread? Mix flour, water, salt and yeast, and wait.",
    "I am sorry, I cannot help with that. 0 1 2 3 4 5 6 7 8 9",
]


WINDOW = 16  # shorter than most of the tests' sequences
ENCODERS = ("bert", "roberta", "xlm-roberta", "modernbert", "deberta-v2")
# Decoders that can be trained as policies.
LANGUAGE_MODELS = (
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt_neox",
    "olmo2",
    "phi3",
    "qwen3_moe",
)
CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, {"num_key_value_heads": 2}),
    "qwen2": (
        Qwen2Config,
        {"num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3": (Qwen3Config, {"num_key_value_heads": 2, "head_dim": 16}),
    "mistral": (MistralConfig, {"num_key_value_heads": 2, "sliding_window": WINDOW}),
    "gemma": (GemmaConfig, {"num_key_value_heads": 1, "head_dim": 16}),
    "gemma2": (
        Gemma2Config,
        # Small bounds and large scores (query_pre_attn_scalar), so that the bounds are felt.
        {
            "num_key_value_heads": 2,
            "head_dim": 16,
            "sliding_window": WINDOW,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 2.0,
            "query_pre_attn_scalar": 1,
        },
    ),
    "gemma3_text": (
        Gemma3TextConfig,
        {
            "num_key_value_heads": 2,
            "head_dim": 16,
            "sliding_window": WINDOW,
            "sliding_window_pattern": 2,
            "query_pre_attn_scalar": 24,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
    ),
    "gpt_neox": (GPTNeoXConfig, {}),
    "olmo2": (Olmo2Config, {"num_key_value_heads": 2}),
    "phi3": (
        Phi3Config,
        {
            "num_key_value_heads": 2,
            "sliding_window": WINDOW,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
            "bos_token_id": None,
            "eos_token_id": None,
        },
    ),
    "qwen3_moe": (
        Qwen3MoeConfig,
        {
            "num_key_value_heads": 2,
            "head_dim": 16,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 24,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
            "output_router_logits": True,  # for a loss of training; scoring has no use for it
        },
    ),
    "qwen3_5_text": (
        Qwen3_5TextConfig,
        {
            "num_key_value_heads": 2,
            "head_dim": 16,
            "full_attention_interval": 2,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
    ),
    "bert": (BertConfig, {}),
    "roberta": (RobertaConfig, {}),
    "xlm-roberta": (XLMRobertaConfig, {}),
    "modernbert": (
        ModernBertConfig,
        {
            "local_attention": WINDOW,
            "global_attn_every_n_layers": 2,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 500.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
            "classifier_bias": True,
            "norm_bias": True,
            **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")),
        },
    ),
    "deberta-v2": (
        DebertaV2Config,
        {
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 8,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "position_biased_input": False,
        },
    ),
}


def tokenizer_of(architecture: str) -> PreTrainedTokenizerFast:
    """A tokenizer with the special tokens and the template of such models."""
    return encoder_tokenizer() if architecture in ENCODERS else decoder_tokenizer()


def tokenizer(specials: dict[str, str], template: str, extra: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with the given special tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    names = [*dict.fromkeys(specials.values()), *extra]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=names,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, additional_special_tokens=list(extra), **specials)
    fast.chat_template = template
    return fast


def decoder_tokenizer(template: str = CHATML, **specials: str) -> PreTrainedTokenizerFast:
    """For Llama and GPT-NeoX."""
    defaults = {"bos_token": "<|bos|>", "eos_token": "<|im_end|>", "pad_token": "<|pad|>"}
    return tokenizer(defaults | specials, template, extra=("<|im_start|>",))


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """For Llama 2 and its kind, whose decoder drops the space at the start of a text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    specials = {"bos_token": "<|bos|>", "eos_token": "<|im_end|>", "pad_token": "<|pad|>"}
    letters = sorted(set("".join(CORPUS) + "\nuser assistant"))
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[*specials.values(), "<|im_start|>"],
        initial_alphabet=letters,
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, additional_special_tokens=["<|im_start|>"], **specials)
    fast.chat_template = CHATML
    return fast


def encoder_tokenizer() -> PreTrainedTokenizerFast:
    """For BERT."""
    specials = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    return tokenizer(specials, ENCODER)


def pair_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that builds pairs as BERT's and DeBERTa's do."""
    fast = encoder_tokenizer()
    fast.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", fast.cls_token_id), ("[SEP]", fast.sep_token_id)],
    )
    fast.chat_template = PAIR
    return fast


def classifier(architecture: str, fast: PreTrainedTokenizerFast, *, seed: int = 0, **more: Any) -> Any:
    """A tiny random sequence classifier with one label; weights are large enough that logits differ visibly."""
    shared: dict[str, Any] = {
        "vocab_size": len(fast),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "pad_token_id": fast.pad_token_id,
        "num_labels": 1,
        "initializer_range": 0.2,
        **more,
    }
    config_class, particular = CONFIGS[architecture]
    torch.manual_seed(seed)
    return AutoModelForSequenceClassification.from_config(config_class(**(particular | shared))).eval()


def language_model(architecture: str, fast: PreTrainedTokenizerFast, *, seed: int = 0, **more: Any) -> Any:
    """A tiny random causal language model."""
    config = classifier(architecture, fast, seed=seed, **more).config
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config).eval()


def save(directory: Path, model: Any, fast: PreTrainedTokenizerFast, **manifest: Any) -> Path:
    """Writes model, tokenizer and, where given, a manifest."""
    model.save_pretrained(directory)
    fast.save_pretrained(directory)
    if manifest:
        (directory / "assay.json").write_text(json.dumps(manifest))
    return directory


def name_tokenizer(directory: Path, name: str) -> None:
    """Change the class that a checkpoint names for its tokenizer."""
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": name}))


def save_adapter(
    directory: Path, base: Any, *, seed: int = 1, lora: dict[str, Any] | None = None, **manifest: Any
) -> tuple[Path, Any]:
    """A random LoRA adapter with a head of its own on `base`, in PEFT's format; returns it with PEFT's own model."""
    torch.manual_seed(seed)
    targets = {
        "bert": ["query", "value"],
        "roberta": ["query", "value"],
        "xlm-roberta": ["query", "value"],
        "phi3": ["qkv_proj"],
        "modernbert": ["Wqkv"],
        "deberta-v2": ["query_proj", "value_proj"],
        "gpt_neox": ["query_key_value", "dense"],
    }.get(base.config.model_type, ["q_proj", "v_proj"])
    settings = {"r": 4, "lora_alpha": 8, "target_modules": targets, **(lora or {})}
    wrapped = get_peft_model(base, LoraConfig(task_type=TaskType.SEQ_CLS, **settings))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.normal_(std=0.2)
    wrapped.save_pretrained(directory)
    if manifest:
        (directory / "assay.json").write_text(json.dumps(manifest))
    return directory, wrapped.eval()


def oracle(model: Any, ids: tuple[int, ...]) -> float:
    """transformers' own classifier, batch of one, eager attention, no padding, fp32."""
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        return float(model(input_ids=torch.tensor([ids])).logits[0, 0])
