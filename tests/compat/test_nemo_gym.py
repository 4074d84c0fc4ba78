"""NeMo-Gym's wire: bodies as `responses_api_agents/simple_agent` and `genrm_compare` send them (commit 07d6b0d)."""

import json
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from assay_service import create_app
from assay_service.api.compat.responses import build_messages
from tests.compat.conftest import Serve

PARAMS = {"input": [{"role": "user", "content": "say hi", "type": "message"}], "tools": []}


def output(text: str) -> dict[str, Any]:
    """A message item as NeMo-Gym's model servers return it, with the token ids of training."""
    return {
        "id": "msg_1",
        "content": [{"annotations": [], "text": text, "type": "output_text", "logprobs": None}],
        "role": "assistant",
        "status": "completed",
        "type": "message",
        "prompt_token_ids": [1, 2],
        "generation_token_ids": [3],
        "generation_log_probs": [-0.5],
    }


def response(*items: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"id": "resp_1", "object": "response", "output": list(items), "incomplete_details": None, **fields}


def verify(url: str, body: dict[str, Any], path: str = "/verify") -> httpx.Response:
    # Escaped, so that a lone surrogate can be sent.
    headers = {"content-type": "application/json"}
    return httpx.post(f"{url}/compat/nemo_gym{path}", content=json.dumps(body), headers=headers)


def score(url: str, messages: list[dict[str, Any]], finish_reason: str = "stop", **how: Any) -> dict[str, Any]:
    item = {"messages": messages, "finish_reason": finish_reason}
    answer = httpx.post(f"{url}/v1/score", json={"items": [item], **how})
    row: dict[str, Any] = answer.json()["data"][0]
    return row


CHAT = [{"role": "user", "content": "say hi"}, {"role": "assistant", "content": "hi"}]


def test_a_verified_row_keeps_its_columns_and_gets_a_reward_with_its_parts(url: str) -> None:
    row = {
        "responses_create_params": PARAMS,
        "response": response(output("hi")),
        "_ng_task_index": 3,
        "label": {"any": [1, None, "\ud800"]},
        # of an earlier verification
        "reward": 9.0,
        "_ng_failure_class": "judge_failed",
        "_ng_failure_judge_error": "x",
    }
    answer = verify(url, row)
    assert answer.status_code == 200
    native = score(url, CHAT)
    expected = {key: value for key, value in row.items() if not key.startswith("_ng_failure")}
    expected["reward"] = native["score"]
    got = answer.json()
    components = got.pop("reward_components")
    assert got == expected
    assert components == {
        "pref": 0.25 * native["signals"]["pref"]["logit"],
        "abs": 0.75 * native["signals"]["abs"]["logit"],
    }
    # NeMo-RL's check, environments/nemo_gym.py: math.isclose(reward, sum, rel_tol=1e-5, abs_tol=1e-6)
    assert sum(components.values()) == pytest.approx(got["reward"], rel=1e-12)
    assert "set-cookie" not in answer.headers


def test_standardized_parts_sum_to_the_reward_and_one_signal_has_none(serve: Serve) -> None:
    row = {"responses_create_params": PARAMS, "response": response(output("hi"))}
    url = serve(wires={"nemo_gym": {"model": "mix_std"}}).url
    got = verify(url, row).json()
    logits = score(url, CHAT, model="mix_std")["signals"]
    # the tiny checkpoints declare mean 0.5 and 1.0, and std 2.0
    parts = {"pref": 0.25 * (logits["pref"]["logit"] - 0.5) / 2.0, "abs": 0.75 * (logits["abs"]["logit"] - 1.0) / 2.0}
    assert got["reward_components"] == pytest.approx(parts, abs=1e-12)
    assert got["reward"] == pytest.approx(sum(parts.values()), abs=1e-12)
    assert "reward_components" not in verify(serve(wires={"nemo_gym": {"model": "abs"}}).url, row).json()


@pytest.mark.parametrize(
    ("cut", "status"),
    [
        ({"incomplete_details": {"reason": "max_output_tokens"}}, "completed"),
        ({"incomplete_details": {"reason": "content_filter"}}, "completed"),
        ({"status": "incomplete"}, "completed"),
        ({}, "incomplete"),
    ],
)
def test_a_response_that_was_cut_off_is_scored_as_such(url: str, cut: dict[str, Any], status: str) -> None:
    row = {"responses_create_params": PARAMS, "response": response({**output("hi"), "status": status}, **cut)}
    reward = verify(url, row).json()["reward"]
    assert reward == score(url, CHAT, "length")["score"] != score(url, CHAT)["score"]


def test_text_input_and_instructions_are_read(url: str) -> None:
    params = {"input": "say hi", "instructions": None}
    row = {"responses_create_params": params, "response": response(output("hi"))}
    assert verify(url, row).json()["reward"] == score(url, CHAT)["score"]


CALL = {"type": "function_call", "name": "look", "arguments": "{}", "call_id": "c1"}
REASONING = {"id": "r1", "type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}
REFUSED = [
    ([REASONING, output("hi")], "reasoning_content"),  # the template does not print it
    ([CALL], ""),
    ([], "response.output"),
    ([output("hi"), {"type": "function_call_output", "call_id": "c1", "output": "x"}], "response.output"),
    ([{"type": "image_generation_call", "result": "x"}], "response.output[0]"),
    ([{**output("hi"), "content": [{"type": "refusal", "refusal": "no"}]}], "content[0]"),
    (["hi"], "response.output[0]"),
]


@pytest.mark.parametrize(("items", "where"), REFUSED)
def test_a_response_that_cannot_be_scored_fails_the_request(url: str, items: list[Any], where: str) -> None:
    answer = verify(url, {"responses_create_params": PARAMS, "response": response(*items)})
    assert answer.status_code == 422
    body = answer.json()
    assert set(body) == {"detail", "code", "request_id"}
    assert where in body["detail"]


def test_a_response_that_failed_is_not_scored(url: str) -> None:
    for fields in ({"status": "failed"}, {"error": {"code": "server_error", "message": "x"}}):
        row = {"responses_create_params": PARAMS, "response": response(output("hi"), **fields)}
        assert verify(url, row).status_code == 422


def test_reasoning_and_function_calls_become_parts_of_the_turns_that_they_belong_to() -> None:
    params = {"instructions": "Be kind.", "input": [{"role": "developer", "content": "Use tools."}, *PARAMS["input"]]}
    items = [
        REASONING,
        output("let me see"),
        CALL,
        {**CALL, "name": "find", "call_id": "c2"},
        {"type": "function_call_output", "call_id": "c1", "output": "sun"},
        {"type": "function_call_output", "call_id": "c2", "output": "rain"},
        {"id": "r2", "type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "done"}]},
        output("sun and rain"),
    ]
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}},
        {"id": "c2", "type": "function", "function": {"name": "find", "arguments": "{}"}},
    ]
    text = {"type": "output_text", "text": "let me see"}
    assert build_messages(params, response(*items)) == [
        {"role": "system", "content": "Be kind."},
        {"role": "developer", "content": "Use tools."},
        {"role": "user", "content": "say hi"},
        {"role": "assistant", "content": [text], "reasoning_content": "hm", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "sun"},
        {"role": "tool", "tool_call_id": "c2", "content": "rain"},
        {
            "role": "assistant",
            "content": [{"type": "output_text", "text": "sun and rain"}],
            "reasoning_content": "done",
        },
    ]


@pytest.mark.parametrize(
    "items",
    [
        [REASONING],  # cut off while it reasoned
        [output("hi"), REASONING],
        [CALL, REASONING],
        [CALL, {"type": "function_call_output", "call_id": "c1", "output": "x"}, REASONING],
    ],
)
def test_reasoning_without_a_message_after_it_is_no_completion(url: str, items: list[Any]) -> None:
    """An empty completion would be scored as if the model had said nothing on purpose."""
    cut = response(*items, incomplete_details={"reason": "max_output_tokens"})
    answer = verify(url, {"responses_create_params": PARAMS, "response": cut})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_message")
    group = {"conversation_history": [CHAT[0]], "response_objs": [response(output("hi")), cut]}
    assert verify(url, group, "/compare").status_code == 422


def test_a_response_adds_nothing_to_a_turn_of_the_prompt() -> None:
    params = {"input": [CHAT[0], {"role": "assistant", "content": "let me see"}]}
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    assert build_messages(params, response(CALL)) == [
        *params["input"],
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]


@pytest.mark.parametrize("items", [[CALL, output("done")], [output("done"), CALL], [output(""), CALL, output("done")]])
def test_a_message_and_the_calls_beside_it_are_one_turn(items: list[Any]) -> None:
    text = {"type": "output_text", "text": "done"}
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    assert build_messages(PARAMS, response(*items))[1:] == [
        {"role": "assistant", "content": [text], "tool_calls": [call]}
    ]


@pytest.mark.parametrize(
    "items",
    [
        [output("Part one."), output("Done.")],
        [output("Part one."), CALL, output("Done.")],
        [output("Part one."), {"role": "assistant", "content": "Done."}],
        [REASONING, {"role": "assistant", "content": "hi", "reasoning_content": "other"}],
        [output("hi"), REASONING, CALL],
    ],
)
def test_items_that_no_one_message_can_hold_are_refused(url: str, items: list[Any]) -> None:
    answer = verify(url, {"responses_create_params": PARAMS, "response": response(*items)})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_message")
    assert "turn" in answer.json()["detail"]
    params = {"input": [CHAT[0], *items, {"role": "user", "content": "and?"}]}
    assert verify(url, {"responses_create_params": params, "response": response(output("hi"))}).status_code == 422


@pytest.mark.parametrize(
    "field", [{"prompt": {"id": "pmpt_1"}}, {"previous_response_id": "resp_0"}, {"conversation": "conv_1"}]
)
def test_a_history_that_only_the_policys_server_knows_is_refused(url: str, field: dict[str, Any]) -> None:
    row = {"responses_create_params": PARAMS | field, "response": response(output("hi"))}
    answer = verify(url, row)
    assert answer.status_code == 422
    assert f"responses_create_params.{next(iter(field))}" in answer.json()["detail"]
    empty = {"responses_create_params": PARAMS | dict.fromkeys(field), "response": response(output("hi"))}
    assert verify(url, empty).json()["reward"] == score(url, CHAT)["score"]


@pytest.mark.parametrize(
    "field",
    [
        {"prompt": {"id": "p"}},
        {"previous_response_id": "resp_0"},
        {"conversation": {"id": "c"}},
        {"instructions": "Rhyme."},
    ],
)
def test_a_response_to_another_request_than_the_one_beside_it_is_refused(url: str, field: dict[str, Any]) -> None:
    """Servers repeat fields of their request in the response, so it shows what else the policy read."""
    name = next(iter(field))
    answer = verify(url, {"responses_create_params": PARAMS, "response": response(output("hi"), **field)})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_message")
    assert f"response.{name} " in answer.json()["detail"]
    history = {"conversation_history": PARAMS["input"], "response_objs": [response(output("hi"), **field)]}
    answer = verify(url, history, "/compare")
    assert answer.status_code == 422
    assert f"response_objs[0].{name} " in answer.json()["detail"]


def test_repeated_instructions_are_those_of_the_request(url: str) -> None:
    ruled = [{"role": "system", "content": "Rhyme."}, *CHAT]
    wanted = score(url, ruled)["score"]
    row = {"responses_create_params": PARAMS | {"instructions": "Rhyme."}}
    assert verify(url, row | {"response": response(output("hi"), instructions="Rhyme.")}).json()["reward"] == wanted
    system = {"role": "system", "content": [{"type": "input_text", "text": "Rhyme."}]}
    for given in ("Rhyme.", None, ""):
        body = {
            "conversation_history": [system, *PARAMS["input"]],
            "response_objs": [response(output("hi"), instructions=given)],
        }
        assert verify(url, body, "/compare").json()["rewards"] == [wanted]


def test_empty_instructions_are_no_message(url: str) -> None:
    row = {"responses_create_params": PARAMS | {"instructions": ""}, "response": response(output("hi"))}
    assert verify(url, row).json()["reward"] == score(url, CHAT)["score"]


@pytest.mark.parametrize("name", ["audio_data", "audio_path", "audio_paths"])
def test_audio_that_stands_in_the_metadata_is_refused(url: str, name: str) -> None:
    """`_preprocess_chat_completion_create_params` of NeMo-Gym's `vllm_model` puts it into the last user message."""
    metadata = {name: ["a.wav"] if name == "audio_paths" else "a.wav", "topic": "sun"}
    row = {"responses_create_params": PARAMS | {"metadata": metadata}, "response": response(output("hi"))}
    answer = verify(url, row)
    assert answer.status_code == 422
    assert f"metadata.{name}" in answer.json()["detail"]
    del metadata[name]
    assert verify(url, row).json()["reward"] == score(url, CHAT)["score"]


def test_definitions_of_tools_change_no_score(url: str) -> None:
    tool = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}, "strict": True}
    params = PARAMS | {"tools": [tool], "tool_choice": "auto", "parallel_tool_calls": True}
    row = {"responses_create_params": params, "response": response(output("hi"))}
    assert verify(url, row).json()["reward"] == score(url, CHAT)["score"]


ENCRYPTED = {"id": "rs_1", "type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}


@pytest.mark.parametrize("summary", [[], ENCRYPTED["summary"]])
def test_encrypted_reasoning_is_what_the_signals_policy_says_and_its_summary_never_stands_for_it(
    tiny: dict[str, Any], summary: list[Any]
) -> None:
    hidden = {**ENCRYPTED, "summary": summary, "encrypted_content": "gAAAAA=="}
    row = {"responses_create_params": PARAMS, "response": response(hidden, output("hi"))}
    for policy, code in (("keep", "template_error"), ("strip", None), ("error", "reasoning")):
        given = tiny["settings"]
        signal = given.signals["pref"].model_copy(update={"reasoning": policy})
        settings = given.model_copy(update={"signals": {"pref": signal}, "blends": {}, "default": "pref"})
        with TestClient(create_app(settings)) as client:
            answer = client.post("/compat/nemo_gym/verify", json=row)
            alone = client.post("/v1/score", json={"items": [{"messages": CHAT}]}).json()["data"][0]["score"]
        assert answer.json().get("code") == code
        if code is None:
            assert answer.json()["reward"] == alone
        else:
            assert answer.status_code == 422
        if policy == "keep":
            assert "messages[1].encrypted_content" in answer.json()["detail"]


def test_reasoning_beside_its_encrypted_form_is_read() -> None:
    """`content` is the reasoning; NeMo-Gym's own servers send all of it as the summary, and nothing encrypted."""
    content = [{"type": "reasoning_text", "text": "It is polite."}]
    for item in ({**ENCRYPTED, "content": content, "encrypted_content": "gAAAAA=="}, {**ENCRYPTED, "content": content}):
        assert build_messages(PARAMS, response(item, output("hi")))[-1]["reasoning_content"] == "It is polite."
    assert build_messages(PARAMS, response(ENCRYPTED, output("hi")))[-1]["reasoning_content"] == "hm"


def test_reasoning_without_any_text_is_none(url: str) -> None:
    nothing: dict[str, Any] = {"type": "reasoning", "summary": [], "encrypted_content": None}
    row = {"responses_create_params": PARAMS, "response": response(nothing, output("hi"))}
    assert verify(url, row).json()["reward"] == score(url, CHAT)["score"]


@pytest.mark.parametrize("status", [["completed"], {"a": 1}, "x", 0, "in_progress"])
def test_a_status_of_another_kind_does_not_count_as_finished(url: str, status: Any) -> None:
    for got in (response(output("hi"), status=status), response({**output("hi"), "status": status})):
        answer = verify(url, {"responses_create_params": PARAMS, "response": got})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_message")


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_a_column_that_no_answer_could_repeat_is_refused(url: str, number: str) -> None:
    row = json.dumps({"responses_create_params": PARAMS, "response": response(output("hi")), "label": [7.25]})
    headers = {"content-type": "application/json"}
    body = row.replace("7.25", number)
    answer = httpx.post(f"{url}/compat/nemo_gym/verify", content=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


def test_a_floored_row_is_marked_as_a_failure_and_its_parts_sum_to_the_floor(serve: Serve) -> None:
    url = serve(wires={"nemo_gym": {"on_item_error": {"floor": -3.0}}}).url
    answer = verify(url, {"responses_create_params": PARAMS, "response": response(), "label": 1})
    assert answer.status_code == 200
    assert answer.headers["X-Assay-Floored-Items"] == "0"
    got = answer.json()
    assert got["_ng_failure_assay_error"].startswith("invalid_message: ")
    del got["_ng_failure_assay_error"], got["response"], got["responses_create_params"]
    assert got == {
        "label": 1,
        "reward": -3.0,
        "reward_components": {"pref": -1.5, "abs": -1.5},
        "_ng_failure_class": "assay_refused",
        "_ng_failure_terminal": True,
    }


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"responses_create_params": PARAMS},
        {"responses_create_params": PARAMS, "response": None},
        {"responses_create_params": [], "response": response(output("hi"))},
    ],
)
def test_a_body_without_a_response_is_refused(url: str, body: dict[str, Any]) -> None:
    answer = verify(url, body)
    assert answer.status_code == 422
    assert set(answer.json()) == {"detail", "code", "request_id"}


def test_compare_scores_a_group_in_one_call(url: str) -> None:
    texts = ["hi", "hello there", "no"]
    body = {
        "conversation_history": [{"role": "user", "content": "say hi"}],
        "response_objs": [response(output(text)) for text in texts],
    }
    got = verify(url, body, "/compare").json()
    rewards = [score(url, [CHAT[0], {"role": "assistant", "content": text}])["score"] for text in texts]
    assert got["rewards"] == rewards
    best, middle, last = sorted(range(3), key=lambda index: -rewards[index])
    assert [(row["response_i"], row["response_j"]) for row in got["comparison_results"]] == [
        (best, middle),
        (middle, last),
    ]
    assert got["comparison_results"][0]["margin"] == rewards[best] - rewards[middle]
    assert got["metrics"]["mean_individual_score"] == pytest.approx(sum(rewards) / 3)
    assert verify(url, {**body, "principle": None}, "/compare").json() == got
    assert verify(url, {**body, "principle": "be short"}, "/compare").status_code == 422
    assert verify(url, {**body, "response_objs": []}, "/compare").json() == {
        "rewards": [],
        "comparison_results": [],
        "metrics": {},
    }


def test_one_bad_response_fails_the_group_and_is_named(url: str) -> None:
    body = {"conversation_history": [CHAT[0]], "response_objs": [response(output("hi")), response(CALL)]}
    answer = verify(url, body, "/compare")
    assert answer.status_code == 422
    assert "rewards" not in answer.json()


def test_sessions_and_prefixed_paths(url: str) -> None:
    assert verify(url, {"any": 1, "responses_create_params": PARAMS}, "/seed_session").json() == {}
    assert httpx.get(f"{url}/compat/nemo_gym/reverify_mode").json() == "stateless"
    row = {"responses_create_params": PARAMS, "response": response(output("hi"))}
    assert verify(url, row, "/ng-rollout/3-0/verify").json() == verify(url, row).json()


def test_aggregated_metrics_are_those_of_nemo_gym(url: str) -> None:
    """The expected values are those of NeMo-Gym's own `compute_aggregate_metrics` for these rows."""
    rows = [
        {"_ng_task_index": 0, "_ng_rollout_index": 0, "reward": 1.5, "ok": True, "response": {"usage": {"t": 4}}},
        {"_ng_task_index": 0, "_ng_rollout_index": 1, "reward": -0.5, "ok": False, "response": {"usage": {"t": 8}}},
        {"_ng_task_index": 1, "_ng_rollout_index": 0, "reward": 2.0, "label": "x"},
    ]
    assert verify(url, {"verify_responses": rows}, "/aggregate_metrics").json() == AGGREGATED
    assert verify(url, {"verify_responses": []}, "/aggregate_metrics").json() == {
        "group_level_metrics": [],
        "agent_metrics": {},
        "key_metrics": {},
    }
    assert verify(url, {"verify_responses": [rows[0], rows[0]]}, "/aggregate_metrics").status_code == 422


@pytest.mark.parametrize("columns", [{"reward": 1e308}, {"reward": 1.5, "x": 10**400}, {"x": -(10**308)}])
def test_statistics_that_are_too_large_are_refused(url: str, columns: dict[str, Any]) -> None:
    rows = [{"_ng_task_index": 0, "_ng_rollout_index": index, **columns} for index in range(2)]
    answer = verify(url, {"verify_responses": rows}, "/aggregate_metrics")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


AGGREGATED: dict[str, Any] = {
    "group_level_metrics": [
        {
            "_ng_task_index": 0,
            "mean/reward": 0.5,
            "mean/ok": 0.5,
            "mean/t": 6.0,
            "max/reward": 1.5,
            "max/ok": 1.0,
            "max/t": 8.0,
            "min/reward": -0.5,
            "min/ok": 0.0,
            "min/t": 4.0,
            "median/reward": 0.5,
            "median/ok": 0.5,
            "median/t": 6.0,
            "std/reward": 1.4142135623730951,
            "std/ok": 0.7071067811865476,
            "std/t": 2.8284271247461903,
            "sample": {"agent_ref": {"name": "agent"}},
            "num_rollouts": 2,
            "expected_num_rollouts": 2,
            "missing_num_rollouts": 0,
            "reward_profile_completion_pct": 100.0,
            "rollout_infos": [
                {"rollout_id": "0:0", "_ng_task_index": 0, "_ng_rollout_index": 0, "reward": 1.5, "t": 4, "ok": 1},
                {"rollout_id": "0:1", "_ng_task_index": 0, "_ng_rollout_index": 1, "reward": -0.5, "t": 8, "ok": 0},
            ],
        },
        {
            "_ng_task_index": 1,
            "mean/reward": 2.0,
            "max/reward": 2.0,
            "min/reward": 2.0,
            "median/reward": 2.0,
            "std/reward": 0.0,
            "sample": {"agent_ref": {"name": "agent"}},
            "num_rollouts": 1,
            "expected_num_rollouts": 1,
            "missing_num_rollouts": 0,
            "reward_profile_completion_pct": 100.0,
            "rollout_infos": [{"rollout_id": "1:0", "_ng_task_index": 1, "_ng_rollout_index": 0, "reward": 2.0}],
        },
    ],
    "agent_metrics": {
        "mean/reward": 1.0,
        "mean/ok": 0.5,
        "mean/t": 6.0,
        "max/reward": 2.0,
        "max/ok": 1.0,
        "max/t": 8.0,
        "min/reward": -0.5,
        "min/ok": 0.0,
        "min/t": 4.0,
        "median/reward": 1.5,
        "median/ok": 0.5,
        "median/t": 6.0,
        "std/reward": 1.3228756555322954,
        "std/ok": 0.7071067811865476,
        "std/t": 2.8284271247461903,
    },
    "key_metrics": {"mean/reward": 1.0, "mean/ok": 0.5, "mean/t": 6.0},
}
