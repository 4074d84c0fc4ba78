#!/usr/bin/env bash
# peft 0.21.2, transformers 5.19.0: PeftModel.unload() does not give the base back, but the base with the trained head.
#
# unload() is for the base model "without merging" the adapter. It drops the LoRA weights. In place of the base's head it
# leaves the trained copy (modules_to_save), which was fitted to hidden states with LoRA. So the scores are those of no
# model that ever existed. disable_adapter(), on the same PeftModel, does use the base's head. Nothing is raised.
# Seen: the logits of the base, of disable_adapter() and of the adapter are as expected. unload() gives a fourth value,
# which is the base's hidden state under the adapter's head.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.19.0 peft==0.21.2 2>/dev/null
venv/bin/python - 2>/dev/null <<'PY'
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForSequenceClassification

shape = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
ids = torch.tensor([[5, 6, 7]])


def base():
    torch.manual_seed(0)
    return LlamaForSequenceClassification(LlamaConfig(**shape, num_labels=1, pad_token_id=0)).eval()


def logit(model):
    with torch.inference_mode():
        return model(input_ids=ids).logits.item()


model = get_peft_model(base(), LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"])).eval()
torch.manual_seed(1)
for parameter in model.parameters():
    if parameter.requires_grad:  # stands for training: LoRA and the copy of the head
        torch.nn.init.normal_(parameter, std=0.2)
with model.disable_adapter():
    disabled = logit(model)
head = model.get_submodule("base_model.model.score.modules_to_save.default").weight.detach().clone()
trained, unloaded = logit(model), model.unload()
mixed = base()
mixed.score.weight.data.copy_(head)
print(f"base {logit(base()):.6f}, disabled {disabled:.6f}, adapter {trained:.6f}, unloaded {logit(unloaded):.6f}")
assert disabled == logit(base())
assert not any("lora" in name for name, _ in unloaded.named_parameters())
assert torch.equal(unloaded.score.weight, head) and not torch.equal(head, base().score.weight)
assert abs(logit(unloaded) - logit(base())) > 0.01 and abs(logit(unloaded) - trained) > 0.01
assert abs(logit(unloaded) - logit(mixed)) < 1e-6
print("as described")
PY
