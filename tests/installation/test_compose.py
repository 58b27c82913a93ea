"""The compose files: their mounts exist, their configuration is valid, and their containers have minimal privileges.

No container runs here. promtool and amtool check the configuration files with the paths that they have in containers.
"""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from programs import require_program

from exporter import __version__, sources
from exporter.cli import main
from exporter.sources.cams.settings import CamsAccount

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "config"
DEMO, PRODUCTION = (
    yaml.safe_load((CONFIG / name).read_text("utf-8")) for name in ("compose.yaml", "compose.production.yaml")
)
PORTS = {"exporter": 10144, "prometheus": 9090, "alertmanager": 9093, "grafana": 3000}

Service = dict[str, Any]

each_file = pytest.mark.parametrize("compose_file", [DEMO, PRODUCTION], ids=["demo", "production"])
each_service = pytest.mark.parametrize(
    ("compose_file", "name"),
    [(compose_file, name) for compose_file in (DEMO, PRODUCTION) for name in PORTS],
    ids=[f"{file}-{name}" for file in ("demo", "production") for name in PORTS],
)


def volumes_of(service: Service) -> dict[str, str]:
    """Map the mount targets of a service to the sources."""
    return {target: source for source, target, *_ in (volume.split(":") for volume in service.get("volumes", []))}


def copy_mounts(service: Service, directory: Path) -> Path:
    """Copy the mounted files of the repository to their container paths below `directory`, and return `directory`."""
    for target, source in volumes_of(service).items():
        path = directory / target.removeprefix("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if (CONFIG / source).is_dir() and source.startswith("."):
            shutil.copytree(CONFIG / source, path)
        elif source.startswith("."):
            shutil.copy(CONFIG / source, path)
    return directory


def read_mount(service: Service, target: str) -> Any:
    return yaml.safe_load((CONFIG / volumes_of(service)[target]).read_text("utf-8"))


def serve_parameters() -> dict[str, Any]:
    """Return the parsed command line of the exporter in production."""
    return main.commands["serve"].make_context("serve", [*PRODUCTION["services"]["exporter"]["command"]]).params


@each_file
def test_the_services_are_exporter_prometheus_alertmanager_and_grafana(compose_file: Service) -> None:
    assert set(compose_file["services"]) == set(PORTS)


@each_service
def test_every_mounted_file_and_volume_exists(compose_file: Service, name: str) -> None:
    for source in volumes_of(compose_file["services"][name]).values():
        assert (CONFIG / source).exists() if source.startswith(".") else source in compose_file["volumes"], source


@each_service
def test_files_of_the_repository_are_mounted_read_only(compose_file: Service, name: str) -> None:
    for volume in compose_file["services"][name].get("volumes", []):
        assert volume.endswith(":ro") == volume.startswith("."), volume


@each_service
def test_the_container_has_no_capabilities_and_a_read_only_file_system(compose_file: Service, name: str) -> None:
    service = compose_file["services"][name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "network_mode", "pid", "devices"} & set(service)


@each_service
def test_the_container_does_not_run_as_root(compose_file: Service, name: str) -> None:
    image_user = re.findall(r"^USER (\S+)$", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE)[-1]
    user = compose_file["services"][name].get("user", image_user if name == "exporter" else "root")

    assert user in ("65532:65532", "nobody", "472")


@each_service
def test_the_port_is_published_on_loopback_only(compose_file: Service, name: str) -> None:
    assert compose_file["services"][name]["ports"] == [f"127.0.0.1:{PORTS[name]}:{PORTS[name]}"]


@each_service
def test_the_image_has_a_fixed_version(compose_file: Service, name: str) -> None:
    image = compose_file["services"][name]["image"]

    assert re.fullmatch(r"[\w/-]+:v?\d+\.\d+\.\d+", image)
    assert name != "exporter" or image == f"chatapp-exporter:{__version__}"


@each_service
def test_the_service_has_a_health_check(compose_file: Service, name: str) -> None:
    if name == "exporter":
        assert f"http://127.0.0.1:{PORTS[name]}/-/healthy" in (ROOT / "Dockerfile").read_text("utf-8")
    else:
        *command, url = compose_file["services"][name]["healthcheck"]["test"]
        assert command == ["CMD", "wget", "-qO", "/dev/null"]
        assert urlsplit(url).netloc == f"127.0.0.1:{PORTS[name]}"


@each_file
def test_the_image_is_built_from_the_repository(compose_file: Service) -> None:
    assert (CONFIG / compose_file["services"]["exporter"]["build"] / "Dockerfile").is_file()


@each_file
def test_promtool_accepts_the_prometheus_configuration(compose_file: Service, tmp_path: Path) -> None:
    config = copy_mounts(compose_file["services"]["prometheus"], tmp_path) / "etc/prometheus/prometheus.yml"
    promtool = require_program("promtool", package="prometheus")

    result = subprocess.run([promtool, "check", "config", config], capture_output=True, text=True)

    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 rule files found" in result.stdout


@each_file
def test_amtool_accepts_the_alertmanager_configuration(compose_file: Service, tmp_path: Path) -> None:
    config = copy_mounts(compose_file["services"]["alertmanager"], tmp_path) / "etc/alertmanager/alertmanager.yml"
    amtool = require_program("amtool", package="prometheus-alertmanager")

    result = subprocess.run([amtool, "check-config", config], capture_output=True, text=True)

    assert result.returncode == 0, result.stdout + result.stderr
    for pattern in yaml.safe_load(config.read_text("utf-8")).get("templates", []):
        assert list(config.parent.glob(pattern)), pattern


@each_file
def test_services_use_the_host_names_and_ports_of_the_other_services(compose_file: Service) -> None:
    services = compose_file["services"]
    prometheus = read_mount(services["prometheus"], "/etc/prometheus/prometheus.yml")
    (grafana,) = read_mount(services["grafana"], "/etc/grafana/provisioning/datasources/prometheus.yml")["datasources"]
    ((exporter,), (alertmanager,)) = (
        config["static_configs"][0]["targets"]
        for config in (prometheus["scrape_configs"][0], prometheus["alerting"]["alertmanagers"][0])
    )

    assert [f"exporter{address}" for address in serve_parameters()["addresses"]] == [exporter] == ["exporter:10144"]
    assert alertmanager == "alertmanager:9093"
    assert grafana["url"] == "http://prometheus:9090"


@each_file
def test_the_alertmanager_retention_is_longer_than_the_longest_repeat_interval(compose_file: Service) -> None:
    alertmanager = compose_file["services"]["alertmanager"]
    route = read_mount(alertmanager, "/etc/alertmanager/alertmanager.yml")["route"]

    assert {node.get("repeat_interval") for node in (route, *route["routes"])} == {"12h", "1w", None}
    assert "--data.retention=192h" in alertmanager["command"]  # a week has 168 hours


def test_the_demo_has_the_production_routes_and_inhibition_but_sends_no_notifications() -> None:
    demo, production = (
        read_mount(compose_file["services"]["alertmanager"], "/etc/alertmanager/alertmanager.yml")
        for compose_file in (DEMO, PRODUCTION)
    )

    assert set(demo) == {"route", "inhibit_rules", "receivers"}
    assert [demo[key] for key in ("route", "inhibit_rules")] == [production["route"], production["inhibit_rules"]]
    assert demo["receivers"] == [{"name": receiver["name"]} for receiver in production["receivers"]]


@pytest.mark.parametrize(
    ("copy", "original", "hosts"),
    [
        ("prometheus.yml", "prometheus/prometheus.yml", ["exporter:10144", "alertmanager:9093"]),
        ("datasource.yml", "grafana/provisioning/datasources/prometheus.yml", ["prometheus:9090"]),
    ],
)
def test_a_generated_copy_differs_only_in_host_names(copy: str, original: str, hosts: list[str]) -> None:
    text = (CONFIG / original).read_text("utf-8")
    for host in hosts:
        text = text.replace(f"localhost:{host.partition(':')[2]}", host)

    assert yaml.safe_load((CONFIG / "compose" / copy).read_text("utf-8")) == yaml.safe_load(text), "run: make generate"


@each_file
def test_grafana_loads_the_dashboards_and_its_home_dashboard_is_fleet(compose_file: Service, tmp_path: Path) -> None:
    grafana = compose_file["services"]["grafana"]
    root = copy_mounts(grafana, tmp_path)
    (provider,) = yaml.safe_load((root / "etc/grafana/provisioning/dashboards/chatapp.yml").read_text("utf-8"))[
        "providers"
    ]
    home_dashboard = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"].removeprefix("/")
    directory = root / provider["options"]["path"].removeprefix("/")

    names = sorted(path.name for path in directory.glob("*.json"))
    assert names == ["exporter.json", "fleet.json", "phone_number.json", "review.json"]
    assert root / home_dashboard == directory / "fleet.json"


def test_the_demo_runs_the_command_demo_and_production_uses_the_configuration_file() -> None:
    assert DEMO["services"]["exporter"]["command"] == ["demo"]
    assert serve_parameters()["config_file"] == Path("/etc/chatapp-exporter/exporter.yml")


def test_the_production_configuration_uses_the_mounted_secrets_and_state_directory() -> None:
    exporter = PRODUCTION["services"]["exporter"]
    volumes = volumes_of(exporter)
    directory = CONFIG / volumes["/etc/chatapp-exporter"]
    settings = sources.Settings.model_validate(yaml.safe_load((directory / "exporter.yml").read_text("utf-8")))
    (account,) = settings.accounts
    assert isinstance(account, CamsAccount)

    assert exporter["secrets"] == ["access_key_id", "access_key_secret"]
    assert account.access_key_id_file == "/run/secrets/access_key_id"
    assert account.access_key_secret_file == "/run/secrets/access_key_secret"
    assert (settings.state_file, volumes["/var/lib/chatapp-exporter"]) == (
        "/var/lib/chatapp-exporter/state.db",
        "state",
    )


def test_the_image_has_a_state_directory_that_its_user_can_write_to() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")

    assert "install -d -o 65532 -g 65532 /var/lib/chatapp-exporter\n" in dockerfile
    assert "/var/lib/chatapp-exporter" in volumes_of(PRODUCTION["services"]["exporter"])


def test_every_secret_is_a_file_that_git_ignores() -> None:
    assert PRODUCTION["secrets"] == {
        name: {"file": f"secrets/{name}"}
        for name in ("access_key_id", "access_key_secret", "smtp_password", "slack_url")
    }
    assert "config/secrets/" in (ROOT / ".gitignore").read_text("utf-8").splitlines()
    assert "secrets" not in DEMO


def test_every_file_that_alertmanager_reads_is_a_declared_secret() -> None:
    alertmanager = PRODUCTION["services"]["alertmanager"]
    text = (CONFIG / volumes_of(alertmanager)["/etc/alertmanager/alertmanager.yml"]).read_text("utf-8")
    targets = {secret["target"]: secret["source"] for secret in alertmanager["secrets"]}

    assert set(re.findall(r"_file: (\S+)", text)) == set(targets)
    assert set(targets.values()) < set(PRODUCTION["secrets"])


def test_production_services_restart_after_a_reboot() -> None:
    assert {service["restart"] for service in PRODUCTION["services"].values()} == {"always"}
