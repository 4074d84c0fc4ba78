"""Tokenizers and templates of the layouts: small, with the special tokens of the originals."""

import json
from collections.abc import Callable

from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from assay_service import preset
from tests import checkpoints
from tests.real_templates import trl_templates

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
    "+ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
DPA = (
    "{{ bos_token }}[INST] You must read the following conversation carefully and rate the assistant's response from "
    "score 0-100 in these aspects: helpfulness, correctness, coherence, honesty, complexity, verbosity\n\n"
    "User: {{ messages[0]['content'] }}\n\nAssistant: "
    "{% if not add_generation_prompt %}{{ messages[1]['content'] + ' [/INST]' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) "
    "+ '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
SMALL: dict[str, tuple[dict[str, str], str, tuple[str, ...]]] = {
    "llama3": (
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "pad_token": "<|finetune_right_pad_id|>"},
        LLAMA3,
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    "mistral": ({"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}, MISTRAL, ()),
    "dpa": ({"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}, DPA, ()),
    "gemma": (
        {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"},
        GEMMA,
        ("<start_of_turn>", "<end_of_turn>"),
    ),
    "chatml": (
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        checkpoints.CHATML,
        ("<|im_start|>", "<think>", "</think>"),
    ),
}


def build(kind: str) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a kind, with its template."""
    if kind in SMALL:
        specials, template, extra = SMALL[kind]
        return checkpoints.tokenizer(specials, template, extra)
    fast = build("gemma" if kind == "bge-gemma" else "chatml")
    fast.chat_template = trl_templates()["qwen3"] if kind == "qwen3" else JUDGE_TEMPLATES[kind]
    return fast


def build_pair(separator: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer that encodes two texts as BERT's does, or with `</s>` as RoBERTa's, and prints them so."""
    if separator == "[SEP]":
        return checkpoints.pair_tokenizer()
    specials = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "mask_token": "<mask>"}
    template = checkpoints.PAIR.replace("[CLS]", "<s>").replace("'[SEP]' }}{% if", "'</s></s>' }}{% if")
    fast = checkpoints.tokenizer(specials, template.replace("[SEP]", "</s>"))
    fast.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", fast.cls_token_id), ("</s>", fast.sep_token_id)],
    )
    return fast


# The prompts of rerankers: the text before the query, between query and document, and after the document.
QWEN3 = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
    "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n<Query>: ",
    "\n<Document>: ",
    "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
)
MXBAI = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n",
    "query: ",
    "\ndocument: ",
    "\nYou are a search relevance expert who evaluates how well documents match search queries. For each "
    "query-document pair, carefully analyze the semantic relationship between them, then provide your binary relevance "
    "judgment (0 for not relevant, 1 for relevant).\nRelevance:<|im_end|>\n<|im_start|>assistant\n",
)
BGE_PROMPT = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a "
    "prediction of either 'Yes' or 'No'."
)


def judge_template(before: str, middle: str, after: str) -> str:
    """Return a template that prints the first and the last message into a prompt."""
    texts = [json.dumps(text, ensure_ascii=False) for text in (before, middle, after)]
    return (
        f"{{{{ {texts[0]} + messages[0]['content'] + {texts[1]} }}}}{{% if not add_generation_prompt %}}"
        f"{{{{ messages[-1]['content'] + {texts[2]} }}}}{{% endif %}}"
    )


JUDGE_TEMPLATES = {
    "qwen3-reranker": judge_template(QWEN3[0] + QWEN3[1], QWEN3[2], QWEN3[3]),
    # Their code encodes every part of the prompt by itself, and so do the templates of the presets.
    "mxbai": (preset.DIRECTORY / "templates/mxbai-rerank-v2.jinja").read_text(),
    "bge-gemma": (preset.DIRECTORY / "templates/bge-reranker-v2-gemma.jinja").read_text(),
}


def encode_qwen3_reranker(fast: PreTrainedTokenizerFast, query: str, text: str) -> list[int]:
    """Encode a pair as the model card's code: prefix, instruction with the pair, suffix."""
    before, start, middle, after = QWEN3
    return encode_pieces(fast, before, start + query + middle + text, after)


def encode_bge_gemma(fast: PreTrainedTokenizerFast, query: str, text: str) -> list[int]:
    """Encode a pair as FlagEmbedding's code."""
    return encode_pieces(fast, "<bos>", f"A: {query}", "\n", f"B: {text}", "\n", BGE_PROMPT)


def encode_mxbai(fast: PreTrainedTokenizerFast, query: str, text: str) -> list[int]:
    """Encode a pair as the code of mxbai_rerank."""
    before, start, middle, after = MXBAI
    task, end, suffix = after.removeprefix("\n").partition("<|im_end|>")
    parts = (before, start + query, "\n", middle.removeprefix("\n") + text, "\n", task, end + suffix)
    return encode_pieces(fast, *parts)


ENCODE_JUDGES: dict[str, Callable[[PreTrainedTokenizerFast, str, str], list[int]]] = {
    "qwen3-reranker": encode_qwen3_reranker,
    "mxbai": encode_mxbai,
    "bge-gemma": encode_bge_gemma,
}


def encode_pieces(fast: PreTrainedTokenizerFast, *pieces: str) -> list[int]:
    """Return the ids of pieces of a text, each encoded by itself."""
    return [id_ for piece in pieces for id_ in fast.encode(piece, add_special_tokens=False)]
