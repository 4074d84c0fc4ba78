"""A server as OpenRLHF's `serve_rm`: an async route that runs the forward itself, one sample per request.

python -m benchmarks.contenders.blocking MODEL PORT
"""

import subprocess
import sys
import time
from pathlib import Path

import httpx
import uvicorn
from fastapi import FastAPI, Request

from benchmarks.contenders.base import Contender, find_free_port
from benchmarks.contenders.padded import Padded
from benchmarks.workloads import Group

START_S = 120


class BlockingServer(Contender):
    """That server in a process of its own."""

    served = True

    def __init__(self, model: Path) -> None:
        super().__init__(model)
        port = find_free_port()
        self._process = subprocess.Popen([sys.executable, "-m", __name__, str(model), str(port)])
        limits = httpx.Limits(max_connections=64)
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600, limits=limits)
        until_s = time.monotonic() + START_S
        while not self._up():
            assert self._process.poll() is None, "the server ended"
            assert time.monotonic() < until_s
            time.sleep(0.2)

    def score(self, groups: list[Group]) -> list[float]:
        """Send one request for each group."""
        rewards: list[float] = []
        for group in groups:
            body = {"prompt": group.prompt, "completions": list(group.completions)}
            rewards += self._http.post("/get_reward", json=body).raise_for_status().json()["rewards"]
        return rewards

    def close(self) -> None:
        """End the server."""
        self._http.close()
        self._process.terminate()
        self._process.wait()

    def _up(self) -> bool:
        try:
            return self._http.get("/openapi.json").status_code == 200
        except httpx.TransportError:
            return False


def main(model: Path, port: int) -> None:
    """Serve until the process is ended."""
    scorer, app = Padded(model), FastAPI()

    @app.post("/get_reward")
    async def get_reward(request: Request) -> dict[str, list[float]]:
        body = await request.json()
        return {"rewards": scorer.score([Group(body["prompt"], tuple(body["completions"]))])}

    uvicorn.run(app, port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
