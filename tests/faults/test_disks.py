"""Disks that are full, under real processes: the service goes on, or says in one line why it does not."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from assay_client.client import RewardClient
from tests.faults.service import ASSAY, SIGNAL, Service, make_config, serve
from tests.packages import publish

pytestmark = pytest.mark.slow

SMALL = [("How do I bake bread?", f"{n} minutes") for n in range(4)]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Its log goes to a device that is full: every line of it fails with ENOSPC."""
    config = make_config(tmp_path_factory.mktemp("disks"), {})
    with serve([config], "--access-log", log=Path("/dev/full")) as (one,):
        yield one


def test_a_log_on_a_full_disk_changes_no_answer(service: Service) -> None:
    with RewardClient(service.url, max_retries=0) as client:
        assert len(set(client.score(SMALL).scores())) == 4
        assert client.ready()


def write_package_config(root: Path) -> Path:
    publish(root / "site")
    keys = {**SIGNAL, "base": "package:tiny_model", "max_length": 100, "head": {"tokens": [5, 6]}}
    (root / "service.yaml").write_text(yaml.safe_dump({"signals": {"s": keys}}))
    return root / "service.yaml"


def test_a_full_cache_is_no_reason_not_to_serve(tmp_path: Path) -> None:
    """A file system of 64 KiB, on which the unpacked model does not fit."""
    config, cache = write_package_config(tmp_path), tmp_path / "cache"
    cache.mkdir()
    mount = f"mount -t tmpfs -o size=64k none {cache} && exec "
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount + "true"], check=False, capture_output=True).returncode:
        pytest.skip("this system lets no user mount a file system of his own (user namespaces)")
    env = {
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *sys.path]),
        "XDG_CACHE_HOME": str(cache),
    }
    with serve([config], env=env, within=["unshare", "-rm", "sh", "-c", mount + '"$0" "$@"']) as (one,):
        with RewardClient(one.url) as client:
            assert client.score([("he", "ll")]).scores()[0] is not None
        assert "the cache cannot be written ([Errno 28] No space left on device" in one.log.read_text()


def test_without_room_for_a_model_the_start_says_so_in_one_line(tmp_path: Path) -> None:
    """No file may be larger than 8 KiB, in the cache or elsewhere."""
    config = write_package_config(tmp_path)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *sys.path])}
    env |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "TMPDIR": str(tmp_path), "NO_COLOR": "1"}
    env |= {"PYTHONDONTWRITEBYTECODE": "1"}
    command = ["prlimit", "--fsize=8192", str(ASSAY), "serve", "--config", str(config), "--port", "0"]
    assert shutil.which("prlimit")  # of util-linux, which every Linux has
    done = subprocess.run(command, env=env, check=False, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("assay serve: ")]
    assert "set XDG_CACHE_HOME to a directory with 1 GB of free space" in line
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
