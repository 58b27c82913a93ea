"""The output of `kubectl kustomize`: valid, consistent with the exporter, and with minimal privileges.

No schema is available for ServiceMonitor and PrometheusRule, which are resources of the Prometheus Operator. The
complete ServiceMonitor is compared here, and the PrometheusRule with the rules file in
tests/unit/test_alerting_files.py.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, cast

import kubernetes_validate
import pytest
import yaml
from configured import load
from programs import require_program

from exporter import __version__, sources
from exporter.cli import main
from exporter.config.problems import ConfigError
from exporter.runtime.view import View
from exporter.sources.cams.settings import CamsAccount
from exporter.web.routes import create_app

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "config" / "kubernetes"
DASHBOARDS = ROOT / "dashboards"
LABELS = {"app.kubernetes.io/name": "chatapp-exporter"}
OPERATOR_KINDS = ("ServiceMonitor", "PrometheusRule")
OLDEST, NEWEST = "1.28", kubernetes_validate.latest_version()
"""Kubernetes versions. Shards require 1.28."""

Manifest = dict[str, Any]


def build(directory: Path) -> list[Manifest]:
    """Return the output of `kubectl kustomize` for a directory. Fails if kubectl prints a deprecation warning."""
    kubectl = require_program("kubectl", package="kubernetes-client")
    result = subprocess.run([kubectl, "kustomize", directory], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    return list(yaml.safe_load_all(result.stdout))


@pytest.fixture(scope="module")
def manifests() -> dict[str, Manifest]:
    """Manifests by kind."""
    return {manifest["kind"]: manifest for manifest in build(KUBERNETES)}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    """Manifests with the StatefulSet instead of the Deployment, as described in kustomization.yaml."""
    return build_with_change(tmp_path_factory.mktemp("sharded"), "- deployment.yaml", "- statefulset-sharded.yaml")


def build_with_change(directory: Path, old: str, new: str) -> list[Manifest]:
    """Build a copy in which `old` is replaced with `new` in kustomization.yaml."""
    kustomization = shutil.copytree(KUBERNETES, directory / "kubernetes") / "kustomization.yaml"
    text = kustomization.read_text("utf-8")
    assert old in text
    kustomization.write_text(text.replace(old, new), "utf-8")
    return build(kustomization.parent)


def pod_of(manifest: Manifest) -> Manifest:
    pod: Manifest = manifest["spec"]["template"]["spec"]
    return pod


def container_of(manifest: Manifest) -> Manifest:
    (container,) = pod_of(manifest)["containers"]
    assert isinstance(container, dict)
    return container


def arguments_of(manifest: Manifest) -> dict[str, Any]:
    """Return the parsed command line of the container."""
    return main.commands["serve"].make_context("serve", [*container_of(manifest)["args"]]).params


def validate(manifest: Manifest) -> None:
    for version in (OLDEST, NEWEST):
        kubernetes_validate.validate(manifest, version, strict=True)


def test_every_resource_with_a_schema_is_valid(manifests: dict[str, Manifest]) -> None:
    for kind, manifest in manifests.items():
        if kind not in OPERATOR_KINDS:
            validate(manifest)

    assert sorted(manifests) == [
        *("ConfigMap", "Deployment", "NetworkPolicy", "PersistentVolumeClaim", "PrometheusRule", "Service"),
        "ServiceMonitor",
    ]


def test_the_sharded_statefulset_replaces_the_deployment(sharded: list[Manifest]) -> None:
    for manifest in sharded:
        if manifest["kind"] not in OPERATOR_KINDS:
            validate(manifest)

    assert sorted(manifest["kind"] for manifest in sharded) == [
        *("ConfigMap", "NetworkPolicy", "PrometheusRule", "Service", "ServiceMonitor", "StatefulSet"),
    ]


def test_the_old_pod_is_deleted_before_the_new_pod_starts(manifests: dict[str, Manifest]) -> None:
    spec = manifests["Deployment"]["spec"]

    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})


def test_the_pod_has_no_privileges_and_no_service_account_token(manifests: dict[str, Manifest]) -> None:
    pod, container = pod_of(manifests["Deployment"]), container_of(manifests["Deployment"])

    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "fsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_pod_runs_the_image_of_this_version_as_its_user(manifests: dict[str, Manifest]) -> None:
    security = pod_of(manifests["Deployment"])["securityContext"]
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")

    assert container_of(manifests["Deployment"])["image"] == f"chatapp-exporter:{__version__}"
    assert f"USER {security['runAsUser']}:{security['runAsGroup']}\n" in dockerfile


def test_the_images_entry_in_kustomization_sets_the_registry(tmp_path: Path) -> None:
    manifests = {manifest["kind"]: manifest for manifest in build_with_change(tmp_path, "# images:", "images:")}

    image = container_of(manifests["Deployment"])["image"]
    assert image == f"registry.example.com/chatapp-exporter:{__version__}"


def test_the_memory_request_and_limit_match_the_operations_page(manifests: dict[str, Manifest]) -> None:
    operations = (ROOT / "docs" / "operations.md").read_text("utf-8")
    rows = {numbers: int(size) for numbers, size in re.findall(r"^\| ([\d,]+) \| .* (\d+) MB \(", operations, re.M)}
    required = {numbers: (2 * size + 80) * 1_000_000 for numbers, size in rows.items()}
    resources = container_of(manifests["Deployment"])["resources"]

    assert re.search(r"twice the response size \(without gzip\) plus 80 MB", operations)
    assert resources == {
        "requests": {"cpu": "50m", "memory": "128Mi"},
        "limits": {"cpu": "1", "memory": "256Mi"},
    }
    assert 64 * 2**20 < required["10,000"] < 128 * 2**20 < required["50,000"] < 256 * 2**20


def test_probes_and_ports_match_the_exporter(manifests: dict[str, Manifest]) -> None:
    app = create_app(cast(View, None))
    container = container_of(manifests["Deployment"])
    probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")]
    (port,) = container["ports"]

    assert [probe["path"] for probe in probes] == ["/-/healthy", "/-/healthy", "/-/ready"]
    assert {probe["path"] for probe in probes} < {getattr(route, "path", "") for route in app.routes}
    assert {probe["port"] for probe in probes} == {port["name"]} == {"metrics"}
    assert arguments_of(manifests["Deployment"])["addresses"] == (f":{port['containerPort']}",)


def test_a_pod_that_is_not_ready_is_scraped(manifests: dict[str, Manifest]) -> None:
    spec = manifests["Service"]["spec"]

    assert spec["publishNotReadyAddresses"] is True
    assert spec["ports"] == [{"name": "metrics", "port": 10144, "targetPort": "metrics"}]
    assert spec["selector"] == pod_labels(manifests) == manifests["Service"]["metadata"]["labels"]


def pod_labels(manifests: dict[str, Manifest]) -> dict[str, str]:
    labels: dict[str, str] = manifests["Deployment"]["spec"]["template"]["metadata"]["labels"]
    return labels


def test_the_service_monitor_selects_the_service_and_sets_the_job_name_of_the_rules(
    manifests: dict[str, Manifest],
) -> None:
    assert manifests["ServiceMonitor"] == {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": {"name": "chatapp-exporter", "labels": LABELS},
        "spec": {
            "jobLabel": "app.kubernetes.io/name",
            "selector": {"matchLabels": LABELS},
            "endpoints": [{"port": "metrics", "interval": "30s"}],
        },
    }
    assert manifests["Service"]["metadata"]["labels"] == LABELS == {"app.kubernetes.io/name": "chatapp-exporter"}
    assert 'up{job="chatapp-exporter"}' in (ROOT / "config" / "prometheus" / "chatapp.rules.yml").read_text("utf-8")


def test_the_prometheus_rule_is_complete_and_unchanged(manifests: dict[str, Manifest]) -> None:
    committed = yaml.safe_load((KUBERNETES / "prometheusrule.yaml").read_text("utf-8"))

    assert manifests["PrometheusRule"] == committed
    assert committed["apiVersion"] == "monitoring.coreos.com/v1"
    assert set(committed) == {"apiVersion", "kind", "metadata", "spec"}


def test_the_network_policy_allows_only_prometheus_dns_and_https(manifests: dict[str, Manifest]) -> None:
    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}

    assert manifests["NetworkPolicy"]["spec"] == {
        "podSelector": {"matchLabels": pod_labels(manifests)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [monitoring], "ports": [{"protocol": "TCP", "port": 10144}]}],
        "egress": [{"ports": [{"protocol": p, "port": n} for p, n in (("UDP", 53), ("TCP", 53), ("TCP", 443))]}],
    }


def test_the_configuration_uses_the_mounted_paths(manifests: dict[str, Manifest]) -> None:
    deployment, config = manifests["Deployment"], manifests["ConfigMap"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container_of(deployment)["volumeMounts"]}
    settings = sources.Settings.model_validate(yaml.safe_load(config["data"]["exporter.yml"]))
    (account,) = settings.accounts
    assert isinstance(account, CamsAccount)

    assert pod_of(deployment)["volumes"] == [
        {"name": "config", "configMap": {"name": config["metadata"]["name"]}},
        {"name": "access-key", "secret": {"secretName": "chatapp-exporter", "defaultMode": 0o440}},
        {"name": "state", "persistentVolumeClaim": {"claimName": "chatapp-exporter"}},
    ]
    assert arguments_of(deployment)["config_file"] == Path(mounts["config"], "exporter.yml")
    assert account.access_key_id_file == f"{mounts['access-key']}/access_key_id"
    assert account.access_key_secret_file == f"{mounts['access-key']}/access_key_secret"
    assert settings.state_file == f"{mounts['state']}/state.db"


def test_the_exporter_does_not_start_with_the_placeholders_of_the_example_secret(tmp_path: Path) -> None:
    secret = yaml.safe_load((KUBERNETES / "secret.example.yaml").read_text("utf-8"))
    config = (KUBERNETES / "exporter.yml").read_text("utf-8").replace("/run/secrets/chatapp-exporter", str(tmp_path))
    for name, value in secret["stringData"].items():
        (tmp_path / name).write_text(value, "utf-8")
    (tmp_path / "exporter.yml").write_text(config, "utf-8")

    validate(secret)
    assert set(secret["stringData"]) == {"access_key_id", "access_key_secret"}
    assert secret["metadata"]["name"] == "chatapp-exporter"
    with pytest.raises(ConfigError) as error:
        load(tmp_path / "exporter.yml", {})
    assert str(error.value).count("found characters other than printable ASCII") == 2


def test_the_manifests_contain_no_secret(manifests: dict[str, Manifest], sharded: list[Manifest]) -> None:
    assert "Secret" not in {*manifests, *(manifest["kind"] for manifest in sharded)}


def test_every_dashboard_is_a_config_map_with_the_label_of_the_grafana_sidecar() -> None:
    config_maps = build(DASHBOARDS)
    dashboards = {name: text for config_map in config_maps for name, text in config_map["data"].items()}

    assert {path.name: json.loads(path.read_text("utf-8")) for path in DASHBOARDS.glob("*.json")} == {
        name: json.loads(text) for name, text in dashboards.items()
    }
    for config_map in config_maps:
        validate(config_map)
        assert config_map["metadata"]["labels"] == {"grafana_dashboard": "1"}
        assert config_map["metadata"]["annotations"] == {"grafana_folder": "ChatApp"}
