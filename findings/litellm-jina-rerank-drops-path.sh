#!/usr/bin/env bash
# litellm 1.83.0: `rerank` of the provider jina_ai keeps only host and port of `api_base`; that of cohere keeps its path.
#
# A self-hosted server behind a path prefix (https://gateway/team-a/v1/rerank) is then asked at the root, without any
# warning, so another service may answer there. For the provider cohere the path of `api_base` is used as it is.
# Seen: jina_ai asks /v1/rerank, cohere asks /prefix/v1/rerank, for the same api_base http://127.0.0.1:PORT/prefix/v1/rerank.
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

paths: list[str] = []


class Recorder(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        paths.append(self.path)
        self.rfile.read(int(self.headers["content-length"]))
        results = [{"index": 0, "relevance_score": 0.5, "document": {"text": "a"}}]
        body = json.dumps({"id": "1", "model": "m", "results": results, "usage": {"total_tokens": 1}, "meta": {}})
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


server = HTTPServer(("127.0.0.1", 0), Recorder)
threading.Thread(target=server.serve_forever, daemon=True).start()
base = f"http://127.0.0.1:{server.server_port}/prefix/v1/rerank"
for provider in ("jina_ai", "cohere"):
    litellm.rerank(model=f"{provider}/m", query="q", documents=["a"], api_base=base, api_key="k")
print(paths)
assert paths == ["/v1/rerank", "/prefix/v1/rerank"], paths
print("as described")
PY
