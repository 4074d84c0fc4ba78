"""The pages of trainers and servers: every example has a test that runs it, and every bridge has its row."""

import ast
import re
from pathlib import Path

import assay_client.integrations
from tests.compat import frameworks
from tests.compat.examples import DOCS, PAGES, read_blocks

FOLDER = Path(__file__).parent
# The test that runs each block of a page, in the order of the blocks.
OWNERS = {
    "compat-trainers": ["test_text_wires.py::test_the_page_of_these_trainers_has_right_paths_and_settings"] * 2,
    "server-chat": ["test_server_pages.py::test_chat"],
    "server-nova": ["test_server_pages.py::test_the_lambda_function"],
    "server-rerank": ["test_server_pages.py::test_rerankers"] * 3,
    "server-sglang": ["test_vllm.py::test_the_examples_of_the_page_run"],
    "server-tei": ["test_server_pages.py::test_tei"],
    "server-vllm": ["test_vllm.py::test_the_examples_of_the_page_run"],
    "trainer-areal": ["test_frameworks.py::test_areals_workflows_score_and_refuse_a_rollout_without_a_score"] * 2,
    "trainer-llama-factory": ["test_frameworks.py::test_llama_factory_reads_its_settings"],
    "trainer-ms-swift": [
        "test_frameworks.py::test_ms_swifts_functions_score_together_and_one_without_floor_ends_the_run"
    ],
    "trainer-nemo-gym": [
        "test_text_wires.py::test_the_page_of_these_trainers_has_right_paths_and_settings",
        "test_frameworks.py::test_nemo_gyms_agent_gets_rewards_from_the_service_at_its_root",
    ],
    "trainer-nemo-rl": ["test_bridge_examples.py::test_nemo_rl_registers_the_environment"] * 2,
    "trainer-openrlhf": ["test_frameworks.py::test_openrlhfs_executor_scores_by_the_url_and_by_a_file"] * 2,
    "trainer-rllm": ["test_bridge_examples.py::test_rllm_wraps_the_evaluator"],
    "trainer-skyrl": ["test_bridge_examples.py::test_skyrl_registers_the_environment"] * 2,
    "gateway-nginx": ["test_gateway_nginx.py::test_a_prompt_stays_on_one_server_behind_nginx"] * 2,
    "trainer-slime": [
        "test_bridge_examples.py::test_slimes_flags_are_its_options",
        "test_text_wires.py::test_slime_gets_the_score_and_all_logits_for_its_reward_key",
        "test_bridge_examples.py::test_slimes_flags_are_its_options",
        "test_bridge_examples.py::test_examples_without_a_trainer_define_what_the_trainer_calls",
        "test_bridge_examples.py::test_slimes_flags_are_its_options",
    ],
    "trainer-tinker": ["test_bridge_examples.py::test_examples_without_a_trainer_define_what_the_trainer_calls"],
    "trainer-trl": ["test_trl.py::test_the_examples_of_the_page_make_trainers"] * 2,
    "trainer-verifiers": [
        "test_bridge_examples.py::test_examples_without_a_trainer_define_what_the_trainer_calls",
        "test_frameworks.py::test_verifiers_task_records_rewards_and_none_after_an_error",
        "test_bridge_examples.py::test_examples_without_a_trainer_define_what_the_trainer_calls",
    ],
    "trainer-verl": ["test_frameworks.py::test_verls_reward_loop_manager_scores_in_a_ray_actor"] * 2,
}
NO_BRIDGE = {"nemo_gym"}  # its wire is its bridge


def test_every_block_of_every_page_has_a_test_that_runs_it() -> None:
    assert {page: len(read_blocks(page)) for page in PAGES if read_blocks(page)} == {
        page: len(owners) for page, owners in OWNERS.items()
    }


def test_every_owner_is_a_test_whose_module_reads_the_page() -> None:
    for page, owners in OWNERS.items():
        for owner in owners:
            file, name = owner.split("::")
            source = (FOLDER / file).read_text()
            assert name in {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
            kind, _, title = page.partition("-")
            assert re.search(rf'"({page}|{page}\.md|{title}|{kind}-\*\.md)"', source), owner


def list_bridges() -> set[str]:
    folder = Path(assay_client.integrations.__file__ or "").parent
    return {path.stem for path in folder.glob("[a-z]*.py")}


def read_trainers() -> dict[str, str]:
    """The rows of the table of trainers, by the name of the module."""
    rows = [line for line in (DOCS / "compat-trainers.md").read_text().splitlines() if line.startswith("| ")]
    start = rows.index("| trainer | works | proved by | known differences |")
    return {row.split("|")[1].strip().lower().replace("-", "_"): row for row in rows[start + 1 :]}


def test_the_table_of_trainers_has_a_row_for_every_bridge_and_every_bridge_a_page() -> None:
    assert set(read_trainers()) == list_bridges() | NO_BRIDGE
    pages = {page.removeprefix("trainer-").replace("-", "_") for page in PAGES if page.startswith("trainer-")}
    assert list_bridges() | NO_BRIDGE | {"llama_factory"} == pages


def test_rows_that_say_in_the_tests_are_those_of_the_frameworks_that_tests_install() -> None:
    proved = {name for name, row in read_trainers().items() if "in the tests" in row.split("|")[3]}
    wires_only = {"rerank", "llama_factory"}
    assert proved == (set(frameworks.PINS) - wires_only) | {"trl", "skyrl"}  # these two are in this environment
    for name, pins in frameworks.PINS.items():
        if name not in wires_only:
            version = pins[0].split("==")[1]
            assert version in read_trainers()[name], pins[0]
