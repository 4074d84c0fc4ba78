"""The proxy breaks connections as its faults say; a fault that did nothing would prove nothing."""

import socket
import threading
from collections.abc import Iterator

import pytest

from tests.faults.proxy import DELAY_S, FAULTS, KEPT_BYTES, run_proxy

ANSWER = b"answer" * 100
REQUEST = b"request" * 100


class Echo:
    """A server that answers each connection once it has all of `REQUEST`, and keeps what it got."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self.run, daemon=True).start()

    def run(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection:
                got = b""
                while len(got) < len(REQUEST) and (part := connection.recv(65536)):
                    got += part
                if len(got) == len(REQUEST):
                    connection.sendall(ANSWER)
                    ended = connection.recv(1) == b""
                    got += b"end" if ended else b""
                self.got.append(got)


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.socket.close()


def ask(port: int, timeout_s: float = 5) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
        connection.sendall(REQUEST)
        got = b""
        while len(got) < len(ANSWER) and (part := connection.recv(65536)):
            got += part
        return got


def test_without_a_fault_all_bytes_pass(echo: Echo) -> None:
    with run_proxy(echo.port, []) as proxy:
        assert ask(proxy.port) == ANSWER


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_the_one_that_it_is_called(echo: Echo, fault: str) -> None:
    with run_proxy(echo.port, [fault]) as proxy:
        match fault:
            case "none" | "delay" | "half_close":
                assert ask(proxy.port) == ANSWER
            case "reset" | "reset_answer":
                with pytest.raises(ConnectionResetError):
                    ask(proxy.port)
            case "truncate_answer":
                assert ask(proxy.port) == ANSWER[:KEPT_BYTES]
            case "truncate_request":
                assert ask(proxy.port) == b""
            case "swallow":
                with pytest.raises(TimeoutError):
                    ask(proxy.port, DELAY_S)
        assert proxy.met == {fault: 1}


def test_a_seed_gives_the_same_faults_again(echo: Echo) -> None:
    seen = []
    for _ in range(2):
        with run_proxy(echo.port, ["none", "truncate_answer"], seed=7) as proxy:
            seen.append([len(ask(proxy.port)) for _ in range(12)])
    assert seen[0] == seen[1]
    assert set(seen[0]) == {len(ANSWER), KEPT_BYTES}
