"""The chart with real Helm 3 and 4, over a matrix of values, against the schemas of Kubernetes and of its CRDs."""

import copy
import json
import re
from typing import Any

import pytest
import yaml

from tests.chart import schema
from tests.chart.render import (
    CHART,
    HELM,
    VALUES,
    Object,
    find,
    find_pods,
    find_service,
    render,
    run_helm,
    template,
    validate,
)

pytestmark = pytest.mark.chart
# The oldest version that the chart supports, and the newest with schemas.
VERSIONS = ("1.30", "1.37")


@pytest.fixture(scope="module")
def rendered() -> dict[str, list[Object]]:
    return {name: render(name) for name in VALUES}


@pytest.mark.parametrize("version", HELM)
def test_lint_finds_nothing(version: int) -> None:
    assert run_helm(version, "version", "--short").stdout.startswith(f"v{version}.")
    for values in VALUES.values():
        done = run_helm(version, "lint", "--strict", CHART, "--values", values)
        assert done.returncode == 0, done.stdout + done.stderr
        assert not re.search(r"\[(WARNING|ERROR)\]", done.stdout)


def test_both_versions_of_helm_render_the_same() -> None:
    for values in VALUES.values():
        three, four = (list(yaml.safe_load_all(template(v, "--values", values))) for v in HELM)
        assert sorted(map(repr, three)) == sorted(map(repr, four))


def test_every_object_has_the_schema_of_its_kind(rendered: dict[str, list[Object]]) -> None:
    objects = [item for items in rendered.values() for item in items]
    for version in VERSIONS:
        assert validate(objects, version) == []
    assert {"ServiceMonitor", "PrometheusRule", "ScaledObject", "HTTPRoute", "Ingress", "Job"} <= {
        item["kind"] for item in objects
    }


def test_the_validators_find_faults(rendered: dict[str, list[Object]]) -> None:
    """Each damaged object is one that a cluster would refuse, or would read without the damaged key."""

    def damage(kind: str, *path: Any, value: Any = None) -> Object:
        item: Any = copy.deepcopy(find(rendered["all"], kind, "models" if kind == "PersistentVolumeClaim" else ""))
        inner = item
        for key in path[:-1]:
            inner = inner[key]
        if value is None:
            del inner[path[-1]]
        else:
            inner[path[-1]] = value
        return dict(item)

    damaged = [
        damage("Deployment", "spec", "replicas", value="two"),
        damage("Service", "spec", "port", value=80),
        damage("ScaledObject", "spec", "scaleTargetRef"),
        damage("ScaledObject", "spec", "minReplicas", value=1),
        damage("ServiceMonitor", "spec", "selector"),
        damage("ServiceMonitor", "spec", "endpoints", 0, "tlsConfig", "servername", value="a"),
        damage("HTTPRoute", "spec", "rules", 0, "backendRefs", 0, "port", value="http"),
        {"apiVersion": "example.com/v1", "kind": "Unknown", "metadata": {"name": "a"}},
    ]
    faults = validate(damaged, VERSIONS[0])
    for item in damaged:
        assert [f for f in faults if f.startswith(f"{item['kind']} ")], item["kind"]
    assert any("minReplicas" in fault for fault in faults)
    assert any("servername" in fault for fault in faults)


def test_pods_are_hardened(rendered: dict[str, list[Object]]) -> None:
    for objects in rendered.values():
        for name, pod in find_pods(objects).items():
            assert pod["automountServiceAccountToken"] is False, name
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["securityContext"]["runAsUser"] > 0
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            for container in pod["containers"] + pod.get("initContainers", []):
                context = container["securityContext"]
                assert context["allowPrivilegeEscalation"] is False
                assert context["readOnlyRootFilesystem"] is True
                assert context["capabilities"] == {"drop": ["ALL"]}
                assert "memory" in container["resources"]["limits"], name


def test_every_mount_has_its_volume_and_every_selector_its_pods(rendered: dict[str, list[Object]]) -> None:
    for objects in rendered.values():
        for name, pod in find_pods(objects).items():
            volumes = {volume["name"] for volume in pod.get("volumes", [])}
            containers = pod["containers"] + pod.get("initContainers", [])
            mounts = {mount["name"] for c in containers for mount in c.get("volumeMounts", [])}
            assert mounts == volumes, name
        deployment = find(objects, "Deployment")
        labels = deployment["spec"]["template"]["metadata"]["labels"].items()
        selectors = [deployment["spec"]["selector"]["matchLabels"], find(objects, "Service")["spec"]["selector"]]
        spread = deployment["spec"]["template"]["spec"].get("topologySpreadConstraints", [])
        selectors += [constraint["labelSelector"]["matchLabels"] for constraint in spread]
        selectors += [o["spec"]["selector"]["matchLabels"] for o in objects if o["kind"] == "PodDisruptionBudget"]
        assert all(selector.items() <= labels for selector in selectors)
        for monitor in (o for o in objects if o["kind"] == "ServiceMonitor"):
            wanted = monitor["spec"]["selector"]["matchLabels"]
            assert wanted.items() <= find(objects, "Service")["metadata"]["labels"].items()
        # Pods of jobs and tests are not pods of the service.
        others = [o["spec"]["template"] for o in objects if o["kind"] == "Job"] + [find(objects, "Pod")]
        assert not any(selectors[1].items() <= other["metadata"]["labels"].items() for other in others)


def test_the_configuration_arrives_unchanged(rendered: dict[str, list[Object]]) -> None:
    for name, objects in rendered.items():
        given = yaml.safe_load(VALUES[name].read_text())["config"]
        (written,) = [item["data"]["service.yaml"] for item in objects if "service.yaml" in item.get("data", {})]
        assert yaml.safe_load(written) == given


def test_another_configuration_is_another_pod() -> None:
    first, second = (
        find(render("minimal", *sets), "Deployment")["spec"]["template"]["metadata"]["annotations"]
        for sets in ((), ("config.limits.max_items=7",))
    )
    assert first != second


def test_replicas_are_set_only_without_autoscaling(rendered: dict[str, list[Object]]) -> None:
    assert find(rendered["minimal"], "Deployment")["spec"]["replicas"] == 1
    for name in ("hpa", "keda", "all"):
        assert "replicas" not in find(rendered[name], "Deployment")["spec"]


def test_gpus_are_limits_and_choose_the_image(rendered: dict[str, list[Object]]) -> None:
    container = find_service(rendered["gpu"])
    assert container["resources"]["limits"] == {"memory": "96Gi", "nvidia.com/gpu": 2}
    assert container["image"] == "registry.example/assay:0.1.0-cuda"
    assert find_service(rendered["minimal"])["image"] == "registry.example/assay:0.1.0-cpu"
    assert find_service(rendered["all"])["image"].startswith("registry.example/assay@sha256:")
    pod = find(rendered["gpu"], "Deployment")["spec"]["template"]["spec"]
    assert pod["runtimeClassName"] == "nvidia"
    assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"


def test_pods_read_the_models_after_the_job_has_written_them(rendered: dict[str, list[Object]]) -> None:
    pods = find_pods(rendered["gpu"])
    (job,) = [pod for name, pod in pods.items() if name.startswith("Job")]
    (waiting,) = pods["Deployment r-assay"]["initContainers"]
    marker = {entry["name"]: entry.get("value") for entry in job["containers"][0]["env"]}["MARKER"]
    assert {"name": "MARKER", "value": marker} in waiting["env"]
    assert job["containers"][0]["command"][-1].splitlines()[-1] == 'touch "$MARKER"'
    for container in (waiting, find_service(rendered["gpu"])):
        assert {"name": "models", "mountPath": "/models", "readOnly": True} in container["volumeMounts"]
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in find_service(rendered["gpu"])["env"]
    # Another list is another job, since a job cannot be changed.
    names = {
        find(render("gpu", f"modelCache.models[0].id=a/{name}", "modelCache.models[0].revision=b"), "Job")["metadata"][
            "name"
        ]
        for name in ("c", "d")
    }
    assert len(names) == 2


def test_the_network_policy_admits_only_the_peers(rendered: dict[str, list[Object]]) -> None:
    (rule,) = find(rendered["all"], "NetworkPolicy", "rewards")["spec"]["ingress"]
    assert rule["from"][0] == {"namespaceSelector": {"matchLabels": {"team": "training"}}}
    tested = find(rendered["all"], "Pod")["metadata"]["labels"].items()
    assert rule["from"][1]["podSelector"]["matchLabels"].items() <= tested
    egress = find(rendered["minimal"], "NetworkPolicy")["spec"]["egress"]
    assert [port["port"] for entry in egress for port in entry["ports"]] == [53, 53]


def test_the_schema_has_the_settings_of_the_service() -> None:
    written = json.loads(schema.FILE.read_text())
    assert written == schema.build(), "run `python -m tests.chart.schema`"


def test_every_value_is_in_the_schema_and_has_a_default() -> None:
    def compare(values: Any, known: Any, path: str) -> None:
        if not known.get("properties") or path == ".config":
            return
        assert set(values) == set(known["properties"]), path
        assert known["additionalProperties"] is False, path
        for key, value in values.items():
            compare(value, known["properties"][key], f"{path}.{key}")

    known = json.loads(schema.FILE.read_text())
    known["properties"].pop("global")  # Helm adds it
    for probe in known["properties"]["probes"]["properties"].values():
        probe["properties"].pop("initialDelaySeconds")
    compare(yaml.safe_load((CHART / "values.yaml").read_text()), known, "")
