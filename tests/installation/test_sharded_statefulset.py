"""The StatefulSet for shards: its differences from the Deployment, checked with the command line."""

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
    """Return the shard that the command line parses from the arguments of a pod."""
    arguments = [argument.replace("$(POD_INDEX)", str(pod_index)) for argument in CONTAINER["args"]]
    shard: Shard = main.commands["serve"].make_context("serve", arguments).params["shard"]
    return shard


def pod_without_shard_settings(workload: dict[str, Any]) -> dict[str, Any]:
    pod = workload["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    arguments = [argument for argument in container["args"] if not argument.startswith("--shard=")]
    volumes = [volume for volume in pod["volumes"] if volume["name"] != "state"]
    settings = {key: value for key, value in container.items() if key != "env"}
    return {**pod, "containers": [{**settings, "args": arguments}], "volumes": volumes}


def test_each_pod_has_its_own_shard_and_all_shards_have_a_pod() -> None:
    first = SPEC["ordinals"]["start"]
    shards = [shard_of(index) for index in range(first, first + SPEC["replicas"])]

    assert shards == [Shard(index, 5) for index in (1, 2, 3, 4, 5)]


def test_the_shard_index_is_the_pod_index() -> None:
    (variable,) = CONTAINER["env"]

    assert variable["name"] == "POD_INDEX"
    assert variable["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.labels['apps.kubernetes.io/pod-index']"}}


def test_the_pods_match_the_pod_of_the_deployment_except_for_shard_settings() -> None:
    assert pod_without_shard_settings(STATEFUL_SET) == pod_without_shard_settings(DEPLOYMENT)
    assert SPEC["template"]["metadata"] == DEPLOYMENT["spec"]["template"]["metadata"]


def test_each_pod_has_a_volume_claim_with_the_spec_of_the_deployment() -> None:
    (claim,) = SPEC["volumeClaimTemplates"]

    assert (claim["metadata"]["name"], claim["spec"]) == ("state", CLAIM["spec"])


def test_the_pods_belong_to_the_headless_service() -> None:
    labels = SPEC["template"]["metadata"]["labels"]

    assert (SPEC["serviceName"], SERVICE["spec"]["clusterIP"]) == (SERVICE["metadata"]["name"], "None")
    assert SERVICE["spec"]["selector"] == SPEC["selector"]["matchLabels"] == labels
