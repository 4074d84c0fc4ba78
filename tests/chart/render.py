"""Run Helm and the validators that `make check-chart` installs into `.chart-tools`."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm"
TOOLS = ROOT / ".chart-tools"
VALUES = {path.stem: path for path in sorted((Path(__file__).parent / "values").glob("*.yaml"))}
# Major versions of Helm, and the folder of their program.
HELM = {3: TOOLS / "layer-v32/helm/helm", 4: TOOLS / "layer-v34/helm/helm"}
RELEASE, NAMESPACE = "r", "rl"

Object = dict[str, Any]


def run_helm(version: int, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([HELM[version], *arguments], capture_output=True, text=True, check=False)


def template(version: int, *options: str | Path) -> str:
    """The manifests of the chart, which must render."""
    done = run_helm(version, "template", RELEASE, CHART, "--namespace", NAMESPACE, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def render(values: str, *sets: str) -> list[Object]:
    """The objects that Helm 4 renders from a values file of the tests and more values."""
    printed = template(4, "--values", VALUES[values], *(option for value in sets for option in ("--set", value)))
    return [item for item in yaml.safe_load_all(printed) if item is not None]


def find(objects: Sequence[Object], kind: str, ending: str = "") -> Object:
    """The only object of a kind whose name has an ending."""
    (found,) = [o for o in objects if o["kind"] == kind and o["metadata"]["name"].endswith(ending)]
    return found


def find_pods(objects: Sequence[Object]) -> dict[str, Object]:
    """The specification of every pod, by the kind and name of its object."""
    pods = {}
    for item in objects:
        if item["kind"] in ("Deployment", "Job"):
            pods[f"{item['kind']} {item['metadata']['name']}"] = item["spec"]["template"]["spec"]
        elif item["kind"] == "Pod":
            pods[f"Pod {item['metadata']['name']}"] = item["spec"]
    return pods


def find_service(objects: Sequence[Object]) -> Object:
    """The container of the service."""
    (container,) = find(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def validate(objects: Sequence[Object], version: str) -> list[str]:
    """The faults of all objects: of Kubernetes' own kinds against its schemas, of others against their CRDs'."""
    own = [
        o
        for o in objects
        if "." not in o["apiVersion"].split("/")[0] or o["apiVersion"].split("/")[0].endswith("k8s.io")
    ]
    own = [o for o in own if not o["apiVersion"].startswith("gateway.")]
    custom = [o for o in objects if o not in own]
    here = Path(__file__).parent / "tools"
    faults = []
    commands: list[tuple[Sequence[Object], list[str | Path]]] = [
        (own, [TOOLS / "bin/python", here / "validate.py", version]),
        (custom, ["node", here / "validate.mjs", TOOLS]),
    ]
    for items, command in commands:
        if items:
            done = subprocess.run(command, input=json.dumps(items), capture_output=True, text=True, check=True)
            faults += [f"{items[i]['kind']} {items[i]['metadata']['name']}: {f}" for i, f in json.loads(done.stdout)]
    return faults
