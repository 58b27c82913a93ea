"""The StatefulSet for shards: what it has other than the Deployment, against the command line."""

from pathlib import Path
from typing import Any

import yaml

from exporter.cli import main
from exporter.config.effective import Shard

KUBERNETES = Path(__file__).parents[2] / "config" / "kubernetes"
STATEFUL_SET = yaml.safe_load((KUBERNETES / "statefulset-sharded.yaml").read_text("utf-8"))
DEPLOYMENT, CLAIM = yaml.safe_load_all((KUBERNETES / "deployment.yaml").read_text("utf-8"))
SERVICE = yaml.safe_load((KUBERNETES / "service.yaml").read_text("utf-8"))
SPEC = STATEFUL_SET["spec"]
POD = SPEC["template"]["spec"]
(CONTAINER,) = POD["containers"]


def shard_of(pod_index: int) -> Shard:
    """What the command line makes of the arguments of a pod."""
    arguments = [argument.replace("$(POD_INDEX)", str(pod_index)) for argument in CONTAINER["args"]]
    shard: Shard = main.commands["serve"].make_context("serve", arguments).params["shard"]
    return shard


def without_what_shards_need(workload: dict[str, Any]) -> dict[str, Any]:
    pod = workload["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    arguments = [argument for argument in container["args"] if not argument.startswith("--shard=")]
    volumes = [volume for volume in pod["volumes"] if volume["name"] != "state"]
    alike = {key: value for key, value in container.items() if key != "env"}
    return {**pod, "containers": [{**alike, "args": arguments}], "volumes": volumes}


def test_its_pods_are_all_the_shards_and_each_is_another() -> None:
    first = SPEC["ordinals"]["start"]
    shards = [shard_of(index) for index in range(first, first + SPEC["replicas"])]

    assert shards == [Shard(index, 5) for index in (1, 2, 3, 4, 5)]


def test_the_index_is_that_of_the_pod() -> None:
    (variable,) = CONTAINER["env"]

    assert variable["name"] == "POD_INDEX"
    assert variable["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.labels['apps.kubernetes.io/pod-index']"}}


def test_its_pods_are_like_that_of_the_deployment() -> None:
    assert without_what_shards_need(STATEFUL_SET) == without_what_shards_need(DEPLOYMENT)
    assert SPEC["template"]["metadata"] == DEPLOYMENT["spec"]["template"]["metadata"]


def test_each_pod_has_a_claim_like_that_of_the_deployment() -> None:
    (claim,) = SPEC["volumeClaimTemplates"]

    assert (claim["metadata"]["name"], claim["spec"]) == ("state", CLAIM["spec"])


def test_the_service_gives_its_pods_their_names() -> None:
    labels = SPEC["template"]["metadata"]["labels"]

    assert (SPEC["serviceName"], SERVICE["spec"]["clusterIP"]) == (SERVICE["metadata"]["name"], "None")
    assert SERVICE["spec"]["selector"] == SPEC["selector"]["matchLabels"] == labels
