#!/usr/bin/env bash
# litellm 1.83.0: `rerank` drops the parameter that asks a server for logits, so probabilities come back as scores.
#
# completion() passes parameters that it does not know on to vLLM. rerank() builds the body from a fixed list: vLLM's
# use_activation is dropped, as a keyword and in extra_body. For the provider huggingface (Text Embeddings Inference),
# raw_scores and truncate are always sent as false, even if the caller set them. Its top_n is sent to a server that has
# no such field, and is not applied to the answer, which then has all documents. drop_params is not set, and nothing is
# raised.
# Seen: no use_activation in the rerank body for hosted_vllm, min_p in the completion body; raw_scores and truncate
# false for huggingface; top_n=1 gives 3 results.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet litellm==1.83.0 2>/dev/null
venv/bin/python - 2>/dev/null <<'PY'
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import litellm

bodies: list[dict] = []
# Answers as the two servers give them: to three documents, and to a chat.
VLLM = {
    "id": "1",
    "model": "m",
    "usage": {"prompt_tokens": 3, "total_tokens": 3},
    "results": [{"index": i, "document": {"text": text}, "relevance_score": 0.5} for i, text in enumerate("abc")],
}
TEI = [{"index": i, "score": 0.5} for i in range(3)]
CHAT = {
    "id": "1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}],
}


class Recorder(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        body = json.dumps(TEI if "texts" in bodies[-1] else CHAT if "messages" in bodies[-1] else VLLM).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


server = HTTPServer(("127.0.0.1", 0), Recorder)
threading.Thread(target=server.serve_forever, daemon=True).start()
where = dict(api_key="k", api_base=f"http://127.0.0.1:{server.server_port}")


def rerank(provider, **wish):
    results = litellm.rerank(model=f"{provider}/m", query="q", documents=["a", "b", "c"], **where, **wish).results
    return bodies[-1], len(results)


plain, _ = rerank("hosted_vllm")
keyword, _ = rerank("hosted_vllm", use_activation=False)
extra, _ = rerank("hosted_vllm", extra_body={"use_activation": False})
print("hosted_vllm", keyword)
assert plain == keyword == extra and "use_activation" not in keyword
litellm.completion(model="hosted_vllm/m", messages=[{"role": "user", "content": "q"}], **where, min_p=0.1)
assert bodies[-1]["min_p"] == 0.1
sent, count = rerank("huggingface", raw_scores=True, truncate=True, top_n=1)
print("huggingface", sent, "results:", count)
assert sent["raw_scores"] is False and sent["truncate"] is False
assert sent["top_n"] == 1 and count == 3
print("as described")
PY
