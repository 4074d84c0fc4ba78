"""Score by NeMo-Gym's `SimpleAgent`: its server asks a model server, and then the service as its resources server."""

import json
import os
import sys
import threading
import time
from typing import Any

import httpx
import uvicorn
import yaml
from fastapi import FastAPI
from omegaconf import OmegaConf

os.environ["NEMO_GYM_CONFIG_DICT"] = "{}"  # as for a server that NeMo-Gym's main process has started

from nemo_gym.config_types import BaseServerConfig
from nemo_gym.global_config import GlobalConfigDictParser
from nemo_gym.server_utils import ServerClient
from responses_api_agents.simple_agent.app import SimpleAgent, SimpleAgentConfig

JOB = json.load(sys.stdin)
HOST = "127.0.0.1"
completion: dict[str, Any] = {}  # what the model server answers next
model = FastAPI()


@model.post("/v1/responses")
def respond() -> dict[str, Any]:
    content = {"type": "output_text", "text": completion["text"], "annotations": []}
    message = {"id": "m", "type": "message", "role": "assistant", "status": "completed", "content": [content]}
    return {
        "id": "r",
        "object": "response",
        "created_at": 0,
        "model": "policy",
        "output": [message],
        "parallel_tool_calls": False,
        "tool_choice": "auto",
        "tools": [],
        "incomplete_details": None if completion["end"] else {"reason": "max_output_tokens"},
    }


def serve(app: FastAPI) -> int:
    """Serve an application in a thread, and return its port."""
    server = uvicorn.Server(uvicorn.Config(app, host=HOST, port=0, log_level="error"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    return int(server.servers[0].sockets[0].getsockname()[1])


def read_page() -> dict[str, Any]:
    """Return the page's configuration with the port of this service."""
    page: dict[str, Any]
    (page,) = (yaml.safe_load(block) for block in JOB["blocks"]["yaml"] if "compat" not in block)
    assert page["assay"]["resources_servers"]["assay"]["host"] == HOST
    page["assay"]["resources_servers"]["assay"]["port"] = httpx.URL(JOB["url"]).port
    return page


def build_agent(ports: dict[str, int]) -> Any:
    """Return the agent, which looks up the page's server, and others in `ports`, by name when it needs them."""
    own_servers = {name: {"servers": {name: {"host": HOST, "port": port}}} for name, port in ports.items()}
    config = GlobalConfigDictParser().parse_no_environment(OmegaConf.create({**read_page(), **own_servers}))
    assert "entrypoint" not in config.assay.resources_servers.assay  # used, but not started
    assert not GlobalConfigDictParser().filter_for_server_instance_configs(config)
    client = ServerClient(head_server_config=BaseServerConfig(host=HOST, port=1), global_config_dict=config)
    own = {"name": "agent", "host": HOST, "port": 1, "entrypoint": "app.py"}
    references = {
        "resources_server": {"type": "resources_servers", "name": "assay"},
        "model_server": {"type": "responses_api_models", "name": "model"},
    }
    return SimpleAgent(config=SimpleAgentConfig.model_validate({**own, **references}), server_client=client)


agent = build_agent({"model": serve(model), "agent": 0})
url = f"http://{HOST}:{serve(agent.setup_webserver())}"
agent.server_client.global_config_dict.agent.servers.agent.port = httpx.URL(url).port


def run(text: str, end: str) -> httpx.Response:
    completion.update(text=text, end=end)
    return httpx.post(f"{url}/run", json={"responses_create_params": {"input": JOB["prompt"]}}, timeout=60)


rewards = [run(*pair).raise_for_status().json()["reward"] for pair in JOB["completions"]]
print(json.dumps({"rewards": rewards, "failed": run(JOB["refused"], JOB["end"]).status_code}), flush=True)
