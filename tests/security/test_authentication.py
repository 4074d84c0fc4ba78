"""Every route needs a key, except for the probes and the page; errors have each wire's form."""

import base64
import json
import logging
from typing import Any

import pytest
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute, Mount
from starlette.testclient import TestClient

from assay_service import create_app
from assay_service.api.authentication import choose_scope, read_credential
from assay_service.api.compat.mount import WIRES
from assay_service.compat_settings import NATIVE_PATHS, CompatSettings
from tests.security.conftest import Guarded

PROBES = {"/health", "/ready"}
PAGE = {"/", "/playground"}
ITEM = {"items": [{"prompt": "p", "completion": "c"}]}


def list_requests(routes: list[BaseRoute]) -> list[tuple[str, str, str]]:
    """The method, an address and the template of every route."""
    asked = []
    for route in routes:
        if isinstance(route, Mount):
            asked.append(("GET", f"{route.path}/main.js", route.path))
            continue
        for method in sorted(getattr(route, "methods", None) or {"GET"}):
            path = str(getattr(route, "path"))  # noqa: B009 - BaseRoute does not declare it
            asked.append((method, path.replace("{rollout_id}", "7").replace("{name}", "enc"), path))
    return asked


def test_every_route_but_the_probes_and_the_page_needs_a_key(guarded: Guarded) -> None:
    asked = list_requests(guarded.client.app.routes)  # type: ignore[attr-defined]
    templates = {template for _, _, template in asked}
    assert {f"/compat/{wire.name}" for wire in WIRES} == {
        "/".join(t.split("/")[:3]) for t in templates if "compat" in t
    }
    assert {"/v1/score", "/info", "/metrics", "/admin/signals", "/docs", "/openapi.json", "/redoc"} <= templates
    opened = set()
    for method, path, template in asked:
        assert "{" not in path
        status = guarded.ask(path, None, method).status_code
        if status != 401:
            opened.add(template)
            continue
        for wrong in ("assay_wrong", guarded.keys["score"][:-1], guarded.keys["score"] + "=", "Bearer"):
            answer = guarded.ask(path, wrong, method)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == 'Bearer realm="assay", error="invalid_token"'
    assert opened == PROBES | PAGE


@pytest.mark.parametrize("root", [wire.name for wire in WIRES if wire.name not in NATIVE_PATHS])
def test_a_wire_at_the_root_needs_a_key_and_answers_in_its_form(
    root: str, tiny: dict[str, Any], guarded: Guarded
) -> None:
    compat = CompatSettings.model_validate({"root": root})
    settings = tiny["settings"].model_copy(update={"keys": str(guarded.file), "compat": compat})
    with TestClient(create_app(settings)) as client:
        paths = [route.path for wire, router in WIRES.items() if wire.name == root for route in router.routes]  # type: ignore[attr-defined]
        for path in paths:
            address = path.replace("{rollout_id}", "7")
            at_root, prefixed = (client.post(f"{start}{address}") for start in ("", f"/compat/{root}"))
            if path == "/reverify_mode":  # a GET
                assert at_root.status_code == prefixed.status_code == 401
                continue
            assert at_root.status_code == prefixed.status_code == 401
            assert strip_ids(at_root.json()) == strip_ids(prefixed.json())


def strip_ids(body: Any) -> Any:
    return {key: value for key, value in body.items() if key not in ("id", "request_id", "requestId")}


FORMS = {
    "aws": lambda body: body["errorMessage"],
    "chat": lambda body: body["error"]["message"],
    "cohere": lambda body: body["message"],
    "jina": lambda body: body["detail"],
    "llamafactory": lambda body: body["detail"],
    "nemo_gym": lambda body: body["detail"],
    "openrlhf": lambda body: body["detail"],
    "sglang": lambda body: body["message"],
    "slime": lambda body: body["error"],
    "tei": lambda body: body["error"],
    "vllm": lambda body: body["error"]["message"],
}


@pytest.mark.parametrize("wire", FORMS)
def test_each_wire_says_in_its_own_form_that_a_key_is_missing_or_does_not_suffice(wire: str, guarded: Guarded) -> None:
    assert {wire.name for wire in WIRES} == set(FORMS)
    spoken = next(one for one in WIRES if one.name == wire)
    route = next(r for r in WIRES[spoken].routes if isinstance(r, APIRoute) and r.methods == {"POST"})
    path = f"/compat/{wire}{route.path}".replace("{rollout_id}", "7")
    missing = guarded.ask(path, None, "POST", json={})
    assert (missing.status_code, missing.headers["www-authenticate"]) == (401, 'Bearer realm="assay"')
    assert FORMS[wire](missing.json()) == "an API key is required: send `Authorization: Bearer KEY`"
    denied = guarded.ask(path, "metrics", "POST", json={})
    assert denied.status_code == 403
    assert denied.headers["www-authenticate"].endswith('error="insufficient_scope", scope="score"')
    assert FORMS[wire](denied.json()) == "this path needs a key with the scope score, and this key has metrics"
    assert missing.headers["x-request-id"]


def test_scopes_open_their_own_paths_only(guarded: Guarded) -> None:
    asked = {"/info": "score", "/v1/models": "score", "/openapi.json": "score", "/metrics": "metrics"}
    for path, scope in asked.items():
        for key in ("score", "metrics", "admin", "all"):
            assert guarded.ask(path, key).status_code == (200 if key in (scope, "all") else 403)
    assert choose_scope("/admin/signals") == choose_scope("/admin") == "admin"
    assert choose_scope("/administrator") == "score"


def test_native_errors_have_codes_and_the_client_knows_them(guarded: Guarded) -> None:
    missing = guarded.ask("/v1/score", None, "POST", json=ITEM).json()["error"]
    assert (missing["code"], missing["retryable"], missing["param"]) == ("unauthorized", False, None)
    assert guarded.ask("/metrics", "score").json()["error"]["code"] == "permission_denied"


@pytest.mark.parametrize(
    "path", ["/nothing", "/metrics/", "http://testserver//metrics", "/v1/score/", "/%6detrics", "/compat/vllm/none"]
)
def test_unknown_and_respelled_paths_show_nothing_without_a_key(path: str, guarded: Guarded) -> None:
    assert guarded.ask(path, None, follow_redirects=False).status_code == 401


def test_the_body_is_not_read_before_the_key_is_checked(guarded: Guarded) -> None:
    answer = guarded.ask("/v1/score", None, "POST", content=b"x" * 300_000)  # more than limits.max_body_bytes
    assert answer.status_code == 401


def test_basic_credentials_of_an_address_are_keys_too(guarded: Guarded) -> None:
    """OpenRLHF, slime and LLaMA-Factory take an address, and can send no header."""
    key = guarded.keys["score"]
    for name in ("", "anybody"):
        basic = base64.b64encode(f"{name}:{key}".encode()).decode()
        sent = {"Authorization": f"Basic {basic}"}
        assert guarded.client.post("/v1/score", json=ITEM, headers=sent).status_code == 200
    assert guarded.client.post("/v1/score", json=ITEM, auth=("", key)).status_code == 200


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ([], None),
        ([(b"authorization", b"Bearer k")], b"k"),
        ([(b"authorization", b"bearer  k ")], b"k"),
        ([(b"authorization", b"Bearer")], None),
        ([(b"authorization", b"k")], None),
        ([(b"authorization", b"Basic !!")], None),
        ([(b"authorization", b"Basic " + base64.b64encode(b"name"))], None),
        ([(b"authorization", b"Digest k")], None),
        ([(b"authorization", b"Bearer k"), (b"authorization", b"Bearer l")], None),
        ([(b"authorization", b"Bearer \xff\x00")], b"\xff\x00"),
    ],
)
def test_credentials_are_read_or_refused(headers: list[tuple[bytes, bytes]], found: bytes | None) -> None:
    assert read_credential(headers) == found


def test_the_name_of_the_key_is_logged_and_the_key_is_not(guarded: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.INFO, "assay.access")  # as with --access-log
    assert guarded.ask("/v1/score", "score", "POST", json=ITEM).status_code == 200
    guarded.ask("/v1/score", guarded.keys["score"] + "x", "POST", json=ITEM)
    guarded.ask("/metrics", "score")
    lines = [record for record in caplog.records if record.name == "assay.access"]
    assert [getattr(line, "fields")["status"] for line in lines] == [200, 401, 403]  # noqa: B009
    assert [getattr(line, "fields").get("caller") for line in lines] == ["score", None, "score"]  # noqa: B009
    written = json.dumps([vars(record) for record in caplog.records], default=str)
    assert not [name for name, key in guarded.keys.items() if key.removeprefix("assay_") in written]


def test_refused_requests_are_counted_by_route(guarded: Guarded) -> None:
    guarded.ask("/info")
    text = guarded.ask("/metrics", "metrics").text
    assert [line for line in text.splitlines() if line.startswith("assay_requests_total") and 'status="401"' in line]


def test_without_a_key_file_nothing_is_asked(tiny: dict[str, Any]) -> None:
    with TestClient(create_app(tiny["settings"])) as client:
        assert client.post("/v1/score", json=ITEM).status_code == 200
        assert client.get("/metrics", headers={"Authorization": "Bearer anything"}).status_code == 200
