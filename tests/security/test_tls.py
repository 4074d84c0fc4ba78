"""HTTPS by a self-signed certificate, also while the models load; and which addresses need keys."""

import os
import pickle
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from assay_client.client import RewardClient
from assay_client.errors import ConnectError, InvalidInput, Unauthorized
from assay_service import access, cli, listen
from assay_service.errors import StartError
from assay_service.keys import add_key
from assay_service.settings import TlsSettings
from tests.security.conftest import Certificate, make_certificate
from tests.service.test_serve_process import ASSAY, START_S, free_port, wait_until_ready


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def loading(made: Certificate, tiny: dict[str, Any]) -> Iterator[str]:
    """The address of a service whose models load."""
    tls = TlsSettings(certificate=str(made.certificate), key=str(made.key))
    context = access.check_access(tiny["settings"].model_copy(update={"tls": tls}))
    listening = listen.listen("127.0.0.1", 0, is_protected=False)
    with listening, listen.answer_not_ready(listening, context):
        yield listen.build_url(listening, "127.0.0.1", context)


def test_a_loading_service_answers_by_https_to_those_who_trust_it(loading: str, made: Certificate) -> None:
    trusted = ssl.create_default_context(cafile=made.certificate)
    assert loading.startswith("https://")
    assert httpx.get(f"{loading}/health", verify=trusted).status_code == 200
    with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        httpx.get(f"{loading}/health")
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{loading}/health".replace("https", "http"))
    port = int(loading.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)):  # a client that never speaks delays nobody
        assert httpx.get(f"{loading}/ready", verify=trusted).status_code == 503


def test_the_client_trusts_the_file_that_it_is_given(loading: str, made: Certificate, tmp_path: Path) -> None:
    with RewardClient(loading, ca_file=str(made.certificate)) as client:
        assert client.ready() is False  # it was reached, and its models load
        again = pickle.loads(pickle.dumps(client))
    with again:
        assert again.ready() is False
    with RewardClient(loading, max_retries=0) as client, pytest.raises(ConnectError, match="certificate verify failed"):
        client.info()
    with pytest.raises(InvalidInput, match=r"`ca_file`: .*absent cannot be used: No such file"):
        RewardClient(loading, ca_file=str(tmp_path / "absent"))
    with pytest.raises(InvalidInput, match="it has no certificate in PEM format"):
        RewardClient(loading, ca_file=str(made.key))


def test_a_certificate_that_cannot_be_used_is_reported_before_anything_is_loaded(
    made: Certificate, tmp_path: Path
) -> None:
    other = make_certificate(tmp_path)
    for certificate, key, reason in (
        (made.certificate, other.key, "KEY_VALUES_MISMATCH"),
        (made.key, made.key, "they are not in PEM format"),
        (tmp_path / "absent", made.key, "No such file or directory"),
    ):
        with pytest.raises(StartError, match=f"({reason}).*give a certificate in PEM format"):
            access._load(certificate, key)
    locked = tmp_path / "locked.key"
    command = ["openssl", "ec", "-in", str(made.key), "-out", str(locked), "-aes128", "-passout", "pass:x"]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(StartError, match="private key without a password"):
        access._load(made.certificate, locked)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_other_addresses_than_loopback_need_keys_or_the_flag(host: str) -> None:
    with pytest.raises(StartError, match=rf"--host {host}: other machines can reach .*`assay keys add .*--insecure"):
        listen.listen(host, 0, is_protected=False)
    listen.listen(host, 0, is_protected=True).close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.8.8.8", "::1"])
def test_loopback_needs_none(host: str) -> None:
    listen.listen(host, 0, is_protected=False).close()


def serve(*words: str) -> Any:
    return CliRunner().invoke(cli.app, ["serve", *words])


def test_the_command_refuses_what_does_not_protect(tmp_path: Path, made: Certificate) -> None:
    refused = serve("--host", "0.0.0.0", "--port", "0")
    assert refused.exit_code == 2
    assert "the service has no API keys" in refused.stderr
    half = serve("--tls-certificate", str(made.certificate))
    assert (half.exit_code, "give both" in half.stderr) == (2, True)
    absent = serve("--keys", str(tmp_path / "absent.yaml"))
    assert absent.exit_code == 2
    assert f"keys: {tmp_path / 'absent.yaml'}: cannot be read" in absent.stderr


@pytest.mark.slow
def test_a_process_with_keys_and_tls_serves_and_follows_sighup(
    tiny: dict[str, Any], tmp_path: Path, made: Certificate
) -> None:
    file, port = tmp_path / "keys.yaml", free_port()
    key = add_key(file, "ppo", ("score",))
    command = [ASSAY, "serve", "--config", tiny["root"] / "service.yaml", "--host", "0.0.0.0", "--port", str(port)]
    command += ["--keys", file, "--tls-certificate", made.certificate, "--tls-key", made.key]
    process = subprocess.Popen(command, env=os.environ | {"NO_COLOR": "1"}, stderr=subprocess.PIPE, text=True)
    lines: list[str] = []
    assert process.stderr is not None
    reading = threading.Thread(target=lines.extend, args=(process.stderr,), daemon=True)
    reading.start()
    url, ca_file = f"https://127.0.0.1:{port}", str(made.certificate)
    try:
        with RewardClient(url, api_key=key, ca_file=ca_file) as client:
            wait_until_ready(client, process)  # type: ignore[arg-type]  # it only polls
            assert len(client.score([("bake?", "bread")]).scores()) == 1
        process.send_signal(signal.SIGHUP)
        until_s = time.monotonic() + START_S
        while not any("keys read again: 1 in" in line for line in lines):
            assert time.monotonic() < until_s
            assert process.poll() is None
            time.sleep(0.1)
        with RewardClient(url, ca_file=ca_file) as client, pytest.raises(Unauthorized, match="an API key is required"):
            client.info()
    finally:
        process.kill()
        process.wait()
    reading.join()
    process.stderr.close()
    assert key.removeprefix("assay_") not in "".join(lines)
