#!/usr/bin/env bash
# transformers 5.19.0, gguf 0.19.0: a model that is read from a GGUF file has lost the scaling of its positions.
#
# The file has llama.rope.scaling.type and .factor (or the tensor rope_freqs.weight for Llama 3.1). The table of keys that
# from_pretrained(gguf_file=...) reads has neither, so the configuration says rope_type "default". Every position after
# the first is then rotated by another angle, and all logits differ from those of llama.cpp. Nothing is printed. Assay
# therefore takes the configuration from config.json.
# Seen: config.json has a linear scaling by 4; read from the GGUF file rope_type is "default".
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.19.0 accelerate==1.15.0 gguf==0.19.0 2>/dev/null
venv/bin/python - 2>messages <<'PY'
import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
shape = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1)
scaled = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
config = LlamaConfig(**shape, rope_parameters=scaled, rms_norm_eps=1e-6, initializer_range=0.5)
model = LlamaForCausalLM(config).eval()

writer = gguf.GGUFWriter("model.gguf", "llama")
writer.add_block_count(1)
writer.add_context_length(2048)
writer.add_embedding_length(32)
writer.add_feed_forward_length(64)
writer.add_head_count(1)
writer.add_head_count_kv(1)
writer.add_layer_norm_rms_eps(1e-6)
writer.add_rope_freq_base(10000.0)
writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
writer.add_rope_scaling_factor(4.0)
writer.add_token_list([f"t{number}" for number in range(64)])
names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
for key, tensor in model.state_dict().items():
    stem, _, part = key.rpartition(".")
    values = tensor.numpy()
    if "q_proj" in key or "k_proj" in key:  # the order of rows that llama.cpp has
        values = np.ascontiguousarray(values.reshape(1, 2, 16, 32).swapaxes(1, 2).reshape(32, 32))
    writer.add_tensor(f"{names.get_name(stem)}.{part}", values)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()


def logit(model):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([[5, 6, 7, 9, 11]])).logits[0, -1, 0].item()


read = AutoModelForCausalLM.from_pretrained(".", gguf_file="model.gguf", dtype=torch.float32).eval()
again = AutoModelForCausalLM.from_pretrained(".", gguf_file="model.gguf", config=config, dtype=torch.float32).eval()
print("config.json:", config.rope_parameters, " from the GGUF file:", read.config.rope_parameters)
print(f"logits: the model {logit(model):.4f}, from the file {logit(read):.4f}, with config.json {logit(again):.4f}")
assert read.config.rope_parameters["rope_type"] == "default"
assert abs(logit(model) - logit(again)) < 1e-4 < 1e-2 < abs(logit(model) - logit(read))
print("as described")
PY
! grep -qi "rope" messages
