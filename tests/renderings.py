"""Render conversations as presets must, without Assay: published tokenizers, templates and code of model cards."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from transformers import PreTrainedTokenizerFast

from tests.coverage.texts import BGE_PROMPT, ENCODE_JUDGES, MXBAI, QWEN3
from tests.real_templates import trl_templates
from tests.real_tokenizers import real_tokenizer

Messages = Sequence[tuple[str, str]]
SUM: Messages = (("user", "What is 2 + 3?"), ("assistant", "It is 5."))
STEPS: Messages = (("user", "What is 2 + 3?"), ("assistant", "Add.\nIt is 5."))
PARAGRAPHS: Messages = (("user", "What is 2 + 3?"), ("assistant", "Add.\n\nIt is 5."))
# NeMo-RL's test states that these are 39 tokens for Skywork-Reward-V2-Qwen3-0.6B.
BRASILIA: Messages = (
    ("user", "What is the capital of France? (test 0)"),
    ("assistant", "The capital of Brazil is Brasilia. (response 0)"),
)
# vLLM Ascend's guide states that these two are 193 tokens for Qwen3-Reranker-8B.
BEIJING: Messages = (("user", "What is the capital of China?"), ("assistant", "The capital of China is Beijing."))
GRAVITY: Messages = (
    ("user", "What is the capital of China?"),
    (
        "assistant",
        "Gravity is a force that attracts two bodies towards each other. It gives weight to physical objects and is "
        "responsible for the movement of planets around the sun.",
    ),
)
# ArmoRM's code has the ids of the text that its gate looks for (armo-rm/stage-2_prepare.py).
GATES = {"llama3": [128009, 128006, 78191, 128007, 271], "gemma": [107, 108, 106, 2516, 108]}


@dataclass(frozen=True, slots=True)
class Known:
    """What must be scored for a conversation; see `preset.Rendering`."""

    text: str
    ids: tuple[int, ...]
    read: tuple[int, ...]
    gate: int | None = None


@cache
def tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Return a published tokenizer, with the tokens that reward models add to it."""
    fast = PreTrainedTokenizerFast.from_pretrained(real_tokenizer(name))
    if name == "gemma":  # the instruction-tuned models read them as one token each
        fast.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    return fast


def render_chat(family: str, template: str, messages: Messages, *, bos: bool = False, gate: str | None = None) -> Known:
    """Render as transformers does, by the chat template of the base model.

    Args:
        family: published tokenizer.
        template: name of the base's chat template.
        messages: pairs of role and content.
        bos: whether the tokenizer adds its BOS to the text, which has one already.
        gate: key of `GATES`; None for heads without a gate.
    """
    fast = tokenizer(family)
    chat = [{"role": role, "content": content} for role, content in messages]
    # Llama 3.2's template prints the present day, unless another is given. Assay always prints this one.
    dated = {"date_string": "26 Jul 2024"} if template == "llama3_2" else {}
    text = str(fast.apply_chat_template(chat, chat_template=trl_templates()[template], tokenize=False, **dated))
    ids = [*([fast.bos_token_id] if bos else []), *fast.encode(text, add_special_tokens=False)]
    wanted = [] if gate is None else GATES[gate]
    starts = [place for place in range(len(ids)) if wanted and ids[place : place + len(wanted)] == wanted]
    return Known((fast.bos_token if bos else "") + text, tuple(ids), (len(ids) - 1,), starts[-1] if starts else None)


def render_pair(kind: str, family: str, messages: Messages) -> Known:
    """Render a query and a document as the code of a reranker does; `kind` is a key of `ENCODE_JUDGES`."""
    (_, query), (_, document) = messages
    ids = ENCODE_JUDGES[kind](tokenizer(family), query, document)
    before, start, middle, after = {
        "qwen3-reranker": QWEN3,
        "mxbai": MXBAI,
        "bge-gemma": ("<bos>", "A: ", "\nB: ", f"\n{BGE_PROMPT}"),
    }[kind]
    return Known(before + start + query + middle + document + after, tuple(ids), (len(ids) - 1,))


def render_skywork_o1(messages: Messages) -> Known:
    """Render as `prepare_input` of skywork-o1-prm-inference: every step is encoded by itself."""
    fast = tokenizer("qwen2_5")
    (_, question), (_, completion) = messages
    ids, read = fast.encode(f"<|endoftext|>{question}\n"), []
    for step in completion.split("\n"):
        ids += [*fast.encode(step), fast.encode("\n")[-1]]
        read.append(len(ids) - 1)
    return Known(f"<|endoftext|>{question}\n{completion}\n", tuple(ids), tuple(read))


def render_rlhflow(messages: Messages) -> Known:
    """Render as `prm_evaluate.py` of RLHFlow: a user's turn for each step, and logits three tokens before the end."""
    (_, question), (_, completion) = messages
    first, *later = completion.split("\n\n")
    turns, read = [], []
    for content in (f"{question} {first}", *later):
        turns += [("user", content), ("assistant", "+")]
        known = render_chat("llama3_1", "llama3_1", turns)
        read.append(len(known.ids) - 3)
    return Known(known.text, known.ids, tuple(read))


Render = Callable[[Messages], Known]


def _chat(family: str, template: str, *, bos: bool = False, gate: str | None = None) -> Render:
    return lambda messages: render_chat(family, template, messages, bos=bos, gate=gate)


def _pair(kind: str, family: str) -> Render:
    return lambda messages: render_pair(kind, family, messages)


# How each preset must render, and the conversation that it records.
RENDERERS: dict[str, tuple[Render, Messages]] = {
    "skywork-reward-v2-qwen3-0.6b": (_chat("qwen3", "qwen3"), BRASILIA),
    **dict.fromkeys(
        (
            *("skywork-reward-v2-qwen3-1.7b", "skywork-reward-v2-qwen3-4b", "skywork-reward-v2-qwen3-8b"),
            *("codescaler-1.7b", "codescaler-4b", "codescaler-8b"),
        ),
        (_chat("qwen3", "qwen3"), SUM),
    ),
    "skywork-reward-v2-llama-3.1-8b-40m": (_chat("llama3_1", "llama3_1"), SUM),
    **dict.fromkeys(
        ("skywork-reward-v2-llama-3.2-1b", "skywork-reward-v2-llama-3.2-3b"), (_chat("llama3_1", "llama3_2"), SUM)
    ),
    **dict.fromkeys(("fsfairx-llama3-rm-v0.1", "urm-llama-3-8b"), (_chat("llama3", "llama3"), SUM)),
    **dict.fromkeys(("armorm-llama3-8b-v0.1", "qrm-llama3-8b"), (_chat("llama3", "llama3", gate="llama3"), SUM)),
    "qrm-gemma-2-27b": (_chat("gemma", "gemma", gate="gemma"), SUM),
    **dict.fromkeys(
        ("grm-llama3-8b-rewardmodel-ft", "grm-llama3-8b-sftreg", "grm-llama3-8b-distill"),
        (_chat("llama3", "llama3", bos=True), SUM),
    ),
    **dict.fromkeys(
        ("grm-llama3.2-3b-rewardmodel-ft", "grm-llama3.2-3b-sftreg"), (_chat("llama3_1", "llama3_2", bos=True), SUM)
    ),
    **dict.fromkeys(
        (
            *("grm-gemma-2b-rewardmodel-ft", "grm-gemma-2b-sftreg"),
            *("grm-gemma2-2b-rewardmodel-ft", "grm-gemma2-2b-sftreg"),
        ),
        (_chat("gemma", "gemma", bos=True), SUM),
    ),
    **dict.fromkeys(
        ("qwen3-reranker-0.6b", "qwen3-reranker-0.6b-seq-cls", "qwen3-reranker-4b", "qwen3-reranker-8b"),
        (_pair("qwen3-reranker", "qwen3"), BEIJING),
    ),
    **dict.fromkeys(("mxbai-rerank-base-v2", "mxbai-rerank-large-v2"), (_pair("mxbai", "qwen2_5"), SUM)),
    "bge-reranker-v2-gemma": (_pair("bge-gemma", "gemma"), SUM),
    **dict.fromkeys(
        ("skywork-o1-open-prm-qwen-2.5-1.5b", "skywork-o1-open-prm-qwen-2.5-7b"), (render_skywork_o1, STEPS)
    ),
    **dict.fromkeys(("llama3.1-8b-prm-deepseek-data", "llama3.1-8b-prm-mistral-data"), (render_rlhflow, PARAGRAPHS)),
}
