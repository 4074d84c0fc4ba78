"""OpenRLHF, LLaMA-Factory and slime: payloads of their clients give the scores of the native endpoint."""

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from fastapi.testclient import TestClient

from assay_service import create_app
from assay_service.api.compat.wire import FLOORED_HEADER
from assay_service.compat_settings import CompatSettings
from assay_service.errors import ForwardFailed, StartError
from assay_service.scoring.blend import compute_probability
from assay_service.signal_settings import BlendSettings
from tests import checkpoints
from tests.compat.conftest import Serve, read_body
from tests.compat.examples import read_texts

PROMPT = "<|im_start|>user\nWhat is hot?<|im_end|>\n<|im_start|>assistant\n"
ANSWER, END = "The sun is hot.", "<|im_end|>"
MESSAGES = [{"role": "user", "content": "What is hot?"}]
OPENRLHF = read_body("openrlhf-0.11.2")
LLAMAFACTORY = read_body("llamafactory-0.9.5")  # the second conversation has pads on the left
SLIME = read_body("slime-624b824a-text")
WIRES: dict[str, dict[str, Any]] = {
    "/compat/openrlhf/get_reward": OPENRLHF,
    "/compat/llamafactory/v1/score/evaluation": LLAMAFACTORY,
    "/compat/slime/reward": SLIME,
}


def native(url: str, completion: str = ANSWER, model: str = "mix", **more: Any) -> dict[str, Any]:
    items = [{"prompt": MESSAGES, "completion": completion, **more}]
    (row,) = httpx.post(f"{url}/v1/score", json={"model": model, "items": items}).json()["data"]
    return row  # type: ignore[no-any-return]


def post(url: str, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{url}{path}", json=body)


def serve_signal(serve: Serve, wire: str, model: str, **more: Any) -> str:
    return serve(wires={wire: {"model": model, **more}}).url


def test_openrlhf_gets_the_native_score_and_the_logits_of_all_signals(url: str) -> None:
    row = native(url)
    assert post(url, "/compat/openrlhf/get_reward", **OPENRLHF).json() == {
        "rewards": [row["score"]],
        "extra_logs": {name: [row["signals"][name]["logit"]] for name in ("pref", "abs")},
    }
    # Older clients send no prompts; fields of other clients are ignored.
    answer = post(url, "/compat/openrlhf/get_reward", query=OPENRLHF["query"], labels=[{"any": None}], more=1)
    assert answer.json()["rewards"] == [row["score"]]


def test_openrlhf_gets_scores_only_for_one_absolute_signal(serve: Serve) -> None:
    absolute, preference = (serve_signal(serve, "openrlhf", name) for name in ("abs", "pref"))
    logit = native(absolute, model="abs")["score"]
    answer = post(absolute, "/compat/openrlhf/get_reward", **OPENRLHF).json()
    assert answer == {"rewards": [logit], "scores": [compute_probability(logit)], "extra_logs": {"abs": [logit]}}
    assert "scores" not in post(preference, "/compat/openrlhf/get_reward", **OPENRLHF).json()


def test_openrlhf_sends_later_servers_an_empty_query_beside_the_prompts(url: str) -> None:
    bodies: list[dict[str, Any]] = [{"query": []}, {"query": [], "prompts": []}, {"query": [], "prompts": [PROMPT]}]
    for body in bodies:
        answer = post(url, "/compat/openrlhf/get_reward", **body)
        assert (answer.status_code, answer.json()) == (200, {"rewards": [], "extra_logs": {}})


def test_openrlhf_queries_whose_prompt_was_decoded_with_other_spaces_are_split_in_the_same_place(url: str) -> None:
    query = [OPENRLHF["query"][0].replace("<|im_start|>user\n", "<|im_start|> user\n").replace(" user", "user")]
    body = OPENRLHF | {"query": query, "prompts": [PROMPT.replace("\n<|im_start|>", "\n <|im_start|>")]}
    assert post(url, "/compat/openrlhf/get_reward", **body).json()["rewards"] == [native(url)["score"]]


def test_openrlhf_prompts_that_were_cut_from_the_left_are_refused(url: str) -> None:
    answer = post(url, "/compat/openrlhf/get_reward", **OPENRLHF | {"query": [OPENRLHF["query"][0][20:]]})
    assert (answer.status_code, answer.json()["code"]) == (422, "unreadable_text")
    assert "cuts prompts that are too long" in answer.json()["detail"]


def test_llamafactory_gets_the_native_scores(url: str) -> None:
    answer = post(url, "/compat/llamafactory/v1/score/evaluation", **LLAMAFACTORY, max_length=None).json()
    assert answer.pop("id").startswith("scoreval-")
    scores = [native(url)["score"], native(url, "Ice.")["score"]]
    assert answer == {"object": "score.evaluation", "model": "mix", "scores": scores}
    named = post(url, "/compat/llamafactory/v1/score/evaluation", **LLAMAFACTORY | {"model": "abs"}).json()
    assert named["scores"][0] == native(url, model="abs")["score"]


def test_slime_gets_a_bare_number_for_a_text_and_for_messages(url: str) -> None:
    wanted = native(url)["score"]
    for prompt in (PROMPT, MESSAGES):
        answer = post(url, "/compat/slime/reward", **SLIME | {"prompt": prompt})
        assert (answer.status_code, answer.json()) == (200, wanted)
    cut = post(url, "/compat/slime/reward", **SLIME | {"response": ANSWER})
    assert cut.json() == native(url, finish_reason="length")["score"] != wanted


def test_slime_gets_the_score_and_all_logits_for_its_reward_key(serve: Serve) -> None:
    (settings,) = read_texts("trainer-slime", "yaml")
    url = serve(wires=yaml.safe_load(settings)["compat"]["wires"]).url
    row = native(url)
    logits = {name: row["signals"][name]["logit"] for name in ("pref", "abs")}
    assert len({*logits.values(), row["score"]}) == 3
    for prompt in (PROMPT, MESSAGES):
        assert post(url, "/compat/slime/reward", **SLIME | {"prompt": prompt}).json() == {
            "reward": row["score"],
            **logits,
        }
    refused = post(url, "/compat/slime/reward", **SLIME | {"response": f"{ANSWER}{END}{END}{END}"})
    assert (refused.status_code, refused.json()["code"]) == (422, "special_tokens")
    one = serve_signal(serve, "slime", "pref", parts=True)
    logit = native(one, model="pref")["score"]
    assert post(one, "/compat/slime/reward", **SLIME).json() == {"reward": logit, "pref": logit}


def test_a_floored_part_has_the_floor_and_no_logit_that_no_model_gave(serve: Serve) -> None:
    url = serve(wires={"slime": {"parts": True, "on_item_error": {"floor": -7.5}}}).url
    answer = post(url, "/compat/slime/reward", **SLIME | {"response": f"{ANSWER}{END}{END}{END}"})
    assert (answer.status_code, answer.json()) == (200, {"reward": -7.5})
    assert answer.headers["x-assay-floored-items"] == "0"
    good = post(url, "/compat/slime/reward", **SLIME)
    assert good.json().keys() == {"reward", "pref", "abs"}
    assert "x-assay-floored-items" not in good.headers


@pytest.mark.parametrize("path", WIRES)
def test_bad_input_is_an_error_of_the_wire_without_any_score(url: str, path: str) -> None:
    first, *_ = (name for name in WIRES[path] if name in ("query", "messages", "response"))
    is_list = isinstance(WIRES[path][first], list)
    texts = {
        "special_tokens": f"{PROMPT}Yes.{END}{END}{END}" if is_list else f"Yes.{END}{END}{END}",
        "unreadable_text": "Hello." if is_list else None,
    }
    for code, text in texts.items():
        if text is not None:
            body = {**WIRES[path], first: [text] if is_list else text}
            body.pop("prompts", None)
            answer = post(url, path, **body)
            assert (answer.status_code, answer.json()["code"]) == (422, code)
            assert "scores" not in answer.json()
            assert "rewards" not in answer.json()
    for bad in ({}, {first: 3}, {first: None}, {**WIRES[path], first: ["\ud800"]}):
        answer = httpx.post(f"{url}{path}", content=repr(bad).replace("'", '"').replace("None", "null"))
        assert answer.status_code in (400, 422)
        assert answer.json().keys() <= {"detail", "error", "code", "request_id"}


def test_llamafactory_refuses_an_empty_list_and_a_length_of_its_own(url: str) -> None:
    changes: list[dict[str, Any]] = [{"messages": []}, {"max_length": 8}, {"temperature": 1.0}]
    for change in changes:
        answer = post(url, "/compat/llamafactory/v1/score/evaluation", **LLAMAFACTORY | change)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
        assert "scores" not in answer.json()


@pytest.mark.parametrize("wire", ["openrlhf", "llamafactory", "slime"])
def test_a_refused_item_gets_the_declared_floor_and_is_counted(serve: Serve, wire: str) -> None:
    served = serve(wires={wire: {"on_item_error": {"floor": -7.5}}})
    good, bad = f"{PROMPT}{ANSWER}{END}", f"{PROMPT}{ANSWER}{END}{END}{END}"
    path = next(path for path in WIRES if wire in path)
    bodies: dict[str, dict[str, Any]] = {
        "openrlhf": {"query": [good, bad]},
        "llamafactory": {"model": "model", "messages": [good, bad]},
        "slime": {"prompt": PROMPT, "response": f"{ANSWER}{END}{END}{END}"},
    }
    answer = post(served.url, path, **bodies[wire])
    assert answer.status_code == 200
    score = native(served.url)["score"]
    if wire == "slime":
        assert (answer.json(), answer.headers["x-assay-floored-items"]) == (-7.5, "0")
    else:
        assert answer.json()["rewards" if wire == "openrlhf" else "scores"] == [score, -7.5]
        assert answer.headers["x-assay-floored-items"] == "1"
    if wire == "openrlhf":  # all samples of a run must have the same logs, and a refused one has none
        assert answer.json()["extra_logs"] == {}
    counted = [line for line in httpx.get(f"{served.url}/metrics").text.splitlines() if f'wire="{wire}"' in line]
    assert [line.split()[-1] for line in counted if "floored" in line and "_created" not in line] == ["1.0"]


def test_a_failed_forward_pass_never_becomes_the_floor(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve(wires={"openrlhf": {"on_item_error": {"floor": -1.0}, "model": "pref"}})
    model = served.app.state.scorer.registry.signals["pref"].model

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(model, "outputs", fail)
    body = {"query": [f"{PROMPT}A text that no test has scored before.{END}"]}
    answer = post(served.url, "/compat/openrlhf/get_reward", **body)
    assert (answer.status_code, answer.json()["code"]) == (500, ForwardFailed.code)
    assert "x-assay-floored-items" not in answer.headers


LLAMA_POLICY = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.fixture(scope="module")
def policy(tiny: dict[str, Any]) -> Path:
    directory: Path = tiny["root"] / "policy"
    specials = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    checkpoints.tokenizer(specials, LLAMA_POLICY).save_pretrained(directory)
    return directory


def test_text_of_another_template_is_read_by_the_policys(serve: Serve, policy: Path) -> None:
    url = serve(wires={"openrlhf": {"policy": policy.name}, "slime": {"policy": str(policy)}}).url
    prompt = "<s>[user] What is hot?</s>[assistant] "
    wanted = native(url)["score"]
    body = {"query": [f"{prompt}{ANSWER}</s>"], "prompts": [prompt]}
    assert post(url, "/compat/openrlhf/get_reward", **body).json()["rewards"] == [wanted]
    for sent in (prompt, MESSAGES):
        assert post(url, "/compat/slime/reward", prompt=sent, response=f"{ANSWER}</s>").json() == wanted
    # The template of the reward model no longer reads this wire's text.
    assert post(url, "/compat/openrlhf/get_reward", **OPENRLHF).json()["code"] == "unreadable_text"


def test_a_policy_without_tokenizer_or_template_is_an_error_at_start(tiny: dict[str, Any], policy: Path) -> None:
    def start(directory: Path) -> str:
        compat = CompatSettings.model_validate({"wires": {"slime": {"policy": str(directory)}}})
        with pytest.raises(StartError) as caught:
            create_app(tiny["settings"].model_copy(update={"compat": compat}))
        return caught.value.message

    assert start(policy / "absent").startswith("compat.wires.slime.policy: ")
    bare = tiny["root"] / "bare"
    checkpoints.tokenizer({"eos_token": "</s>"}, LLAMA_POLICY).save_pretrained(bare)
    (bare / "chat_template.jinja").unlink()
    assert "has no chat template" in start(bare)


def test_a_blend_of_signals_with_different_templates_needs_a_policy(tiny: dict[str, Any], policy: Path) -> None:
    body = {"query": [f"<s>[user] Hi.</s>[assistant] {ANSWER}</s>"]}
    for more, code in (({}, "invalid_request"), ({"policy": str(policy)}, None)):
        compat = CompatSettings.model_validate({"wires": {"openrlhf": {"model": "both", **more}}})
        blends = {"both": BlendSettings(weights={"pref": 1.0, "enc": 1.0})}
        settings = tiny["settings"].model_copy(update={"compat": compat, "blends": blends, "default": "both"})
        with TestClient(create_app(settings)) as client:
            answer = client.post("/compat/openrlhf/get_reward", json=body)
        assert answer.json().get("code") == code
        if code:
            assert "compat.wires.openrlhf.policy: DIR" in answer.json()["detail"]


@pytest.mark.parametrize("rule", [{"control_tokens": "text"}, {"dropped_content": "report"}, {"max_length": 100}])
def test_signals_that_differ_in_other_rules_read_text_by_their_one_template(
    tiny: dict[str, Any], rule: dict[str, Any]
) -> None:
    signals = tiny["settings"].signals
    signals = {**signals, "abs": signals["abs"].model_copy(update=rule)}
    with TestClient(create_app(tiny["settings"].model_copy(update={"signals": signals}))) as client:
        items = [{"prompt": MESSAGES, "completion": ANSWER}]
        (row,) = client.post("/v1/score", json={"items": items}).json()["data"]
        assert client.post("/compat/slime/reward", json=SLIME).json() == row["score"]


def test_the_page_of_these_trainers_has_right_paths_and_settings(url: str) -> None:
    docs = Path(__file__).parents[2] / "docs"
    page = "".join(file.read_text() for file in (docs / "compat-trainers.md", *sorted(docs.glob("trainer-*.md"))))
    assert sorted(re.findall(r"http://HOST:PORT(/\S+)", page)) == sorted(WIRES)
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, flags=re.S)]
    declared = [CompatSettings.model_validate(block["compat"]) for block in blocks if "compat" in block]
    assert len(declared) == 4
    assert "assay_floored_items_total" in httpx.get(f"{url}/metrics").text
    assert FLOORED_HEADER in page
