"""The StatefulSet that people copy, against the command line, the HTTP paths and the Dockerfile that it builds on."""

from pathlib import Path
from typing import Any

import yaml

from exporter import __version__
from exporter.cli import main
from exporter.config.shard import Shard
from exporter.web.app import create_app

ROOT = Path(__file__).parents[2]
FILE = ROOT / "config" / "kubernetes" / "statefulset-sharded.yaml"
SERVICE, STATEFUL_SET = yaml.safe_load_all(FILE.read_text(encoding="utf-8"))
SPEC = STATEFUL_SET["spec"]
POD = SPEC["template"]["spec"]
(CONTAINER,) = POD["containers"]


def parameters(pod_index: int) -> dict[str, Any]:
    """What the command line makes of the arguments of a pod."""
    arguments = [argument.replace("$(POD_INDEX)", str(pod_index)) for argument in CONTAINER["args"]]
    return main.commands["serve"].make_context("serve", arguments).params


def test_its_pods_are_all_the_shards_and_each_is_another() -> None:
    first = SPEC["ordinals"]["start"]
    shards = [parameters(index)["shard"] for index in range(first, first + SPEC["replicas"])]

    assert shards == [Shard(index, 5) for index in (1, 2, 3, 4, 5)]


def test_the_index_is_that_of_the_pod() -> None:
    (variable,) = CONTAINER["env"]

    assert variable["name"] == "POD_INDEX"
    assert variable["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.labels['apps.kubernetes.io/pod-index']"}}


def test_its_configuration_and_its_state_lie_in_volumes() -> None:
    mounts = {mount["name"]: mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    claims = [claim["metadata"]["name"] for claim in SPEC["volumeClaimTemplates"]]

    assert parameters(1)["config_file"].parent == Path(mounts["config"])
    assert claims == ["state"]
    assert f"`state_file: {mounts['state']}/state.db`" in FILE.read_text(encoding="utf-8")


def test_its_probes_and_ports_are_those_of_the_exporter() -> None:
    class Nothing:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(name)

    paths = {getattr(route, "path", "") for route in create_app(Nothing()).routes}
    probes = [CONTAINER[f"{kind}Probe"]["httpGet"] for kind in ("liveness", "readiness")]
    (port,) = CONTAINER["ports"]

    assert [probe["path"] for probe in probes] == ["/-/healthy", "/-/ready"]
    assert {probe["path"] for probe in probes} < paths
    assert {probe["port"] for probe in probes} == {port["name"]} == {SERVICE["spec"]["ports"][0]["targetPort"]}
    assert parameters(1)["address"] == f":{port['containerPort']}"


def test_the_service_gives_its_pods_their_names() -> None:
    labels = SPEC["template"]["metadata"]["labels"]

    assert (SPEC["serviceName"], SERVICE["spec"]["clusterIP"]) == (SERVICE["metadata"]["name"], "None")
    assert SERVICE["spec"]["selector"] == SPEC["selector"]["matchLabels"] == labels


def test_it_runs_as_the_user_of_the_image_and_writes_nowhere_else() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    rights = POD["securityContext"]

    assert CONTAINER["image"] == f"chatapp-exporter:{__version__}"
    assert f"USER {rights['runAsUser']}:{rights['runAsGroup']}\n" in dockerfile
    assert (rights["runAsNonRoot"], rights["fsGroup"]) == (True, rights["runAsGroup"])
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
