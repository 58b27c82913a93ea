"""The compositions of containers: what they mount is there and fits, and they may do no more than they need.

No container runs here. Prometheus and Alertmanager judge their configurations as these would lie in the containers.
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

of_each_file = pytest.mark.parametrize("composition", [DEMO, PRODUCTION], ids=["demo", "production"])
of_each_service = pytest.mark.parametrize(
    ("composition", "name"),
    [(composition, name) for composition in (DEMO, PRODUCTION) for name in PORTS],
    ids=[f"{file}-{name}" for file in ("demo", "production") for name in PORTS],
)


def volumes_of(service: Service) -> dict[str, str]:
    """What it mounts, by where."""
    return {target: source for source, target, *_ in (volume.split(":") for volume in service.get("volumes", []))}


def mounted(service: Service, directory: Path) -> Path:
    """The files of the repository as they lie in the container, in a directory."""
    for target, source in volumes_of(service).items():
        place = directory / target.removeprefix("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        if (CONFIG / source).is_dir() and source.startswith("."):
            shutil.copytree(CONFIG / source, place)
        elif source.startswith("."):
            shutil.copy(CONFIG / source, place)
    return directory


def read(service: Service, target: str) -> Any:
    return yaml.safe_load((CONFIG / volumes_of(service)[target]).read_text("utf-8"))


def serve_parameters() -> dict[str, Any]:
    """What the command line makes of the command in production."""
    return main.commands["serve"].make_context("serve", [*PRODUCTION["services"]["exporter"]["command"]]).params


@of_each_file
def test_there_is_everything_to_see(composition: Service) -> None:
    assert set(composition["services"]) == set(PORTS)


@of_each_service
def test_what_it_mounts_is_there(composition: Service, name: str) -> None:
    for source in volumes_of(composition["services"][name]).values():
        assert (CONFIG / source).exists() if source.startswith(".") else source in composition["volumes"], source


@of_each_service
def test_the_repository_cannot_be_written_to(composition: Service, name: str) -> None:
    for volume in composition["services"][name].get("volumes", []):
        assert volume.endswith(":ro") == volume.startswith("."), volume


@of_each_service
def test_it_may_do_nothing_that_it_need_not(composition: Service, name: str) -> None:
    service = composition["services"][name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "network_mode", "pid", "devices"} & set(service)


@of_each_service
def test_it_runs_as_another_than_root(composition: Service, name: str) -> None:
    in_the_image = re.findall(r"^USER (\S+)$", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE)[-1]
    user = composition["services"][name].get("user", in_the_image if name == "exporter" else "root")

    assert user in ("65532:65532", "nobody", "472")


@of_each_service
def test_its_port_is_open_to_this_machine_only(composition: Service, name: str) -> None:
    assert composition["services"][name]["ports"] == [f"127.0.0.1:{PORTS[name]}:{PORTS[name]}"]


@of_each_service
def test_its_image_is_of_one_version(composition: Service, name: str) -> None:
    image = composition["services"][name]["image"]

    assert re.fullmatch(r"[\w/-]+:v?\d+\.\d+\.\d+", image)
    assert name != "exporter" or image == f"chatapp-exporter:{__version__}"


@of_each_service
def test_it_is_watched(composition: Service, name: str) -> None:
    if name == "exporter":
        assert f"http://127.0.0.1:{PORTS[name]}/-/healthy" in (ROOT / "Dockerfile").read_text("utf-8")
    else:
        *command, url = composition["services"][name]["healthcheck"]["test"]
        assert command == ["CMD", "wget", "-qO", "/dev/null"]
        assert urlsplit(url).netloc == f"127.0.0.1:{PORTS[name]}"


@of_each_file
def test_the_image_is_built_from_the_repository(composition: Service) -> None:
    assert (CONFIG / composition["services"]["exporter"]["build"] / "Dockerfile").is_file()


@of_each_file
def test_prometheus_accepts_its_configuration(composition: Service, tmp_path: Path) -> None:
    config = mounted(composition["services"]["prometheus"], tmp_path) / "etc/prometheus/prometheus.yml"
    promtool = require_program("promtool", package="prometheus")

    checked = subprocess.run([promtool, "check", "config", config], capture_output=True, text=True)

    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "1 rule files found" in checked.stdout


@of_each_file
def test_alertmanager_accepts_its_configuration(composition: Service, tmp_path: Path) -> None:
    config = mounted(composition["services"]["alertmanager"], tmp_path) / "etc/alertmanager/alertmanager.yml"
    amtool = require_program("amtool", package="prometheus-alertmanager")

    checked = subprocess.run([amtool, "check-config", config], capture_output=True, text=True)

    assert checked.returncode == 0, checked.stdout + checked.stderr
    for pattern in yaml.safe_load(config.read_text("utf-8")).get("templates", []):
        assert list(config.parent.glob(pattern)), pattern


@of_each_file
def test_each_asks_the_others_where_they_answer(composition: Service) -> None:
    services = composition["services"]
    prometheus = read(services["prometheus"], "/etc/prometheus/prometheus.yml")
    (grafana,) = read(services["grafana"], "/etc/grafana/provisioning/datasources/prometheus.yml")["datasources"]
    ((exporter,), (alertmanager,)) = (
        config["static_configs"][0]["targets"]
        for config in (prometheus["scrape_configs"][0], prometheus["alerting"]["alertmanagers"][0])
    )

    assert [f"exporter{address}" for address in serve_parameters()["addresses"]] == [exporter] == ["exporter:10144"]
    assert alertmanager == "alertmanager:9093"
    assert grafana["url"] == "http://prometheus:9090"


@of_each_file
def test_alertmanager_remembers_whom_it_told_until_it_tells_again(composition: Service) -> None:
    alertmanager = composition["services"]["alertmanager"]
    route = read(alertmanager, "/etc/alertmanager/alertmanager.yml")["route"]

    assert {each.get("repeat_interval") for each in (route, *route["routes"])} == {"12h", "1w", None}
    assert "--data.retention=192h" in alertmanager["command"]  # a week has 168


def test_the_demo_tells_nobody_and_all_else_is_as_in_production() -> None:
    demo, production = (
        read(composition["services"]["alertmanager"], "/etc/alertmanager/alertmanager.yml")
        for composition in (DEMO, PRODUCTION)
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
def test_a_copy_differs_from_what_it_was_made_of_by_names_of_hosts(copy: str, original: str, hosts: list[str]) -> None:
    text = (CONFIG / original).read_text("utf-8")
    for host in hosts:
        text = text.replace(f"localhost:{host.partition(':')[2]}", host)

    assert yaml.safe_load((CONFIG / "compose" / copy).read_text("utf-8")) == yaml.safe_load(text), "run: make generate"


@of_each_file
def test_grafana_finds_the_dashboards_and_begins_with_the_fleet(composition: Service, tmp_path: Path) -> None:
    grafana = composition["services"]["grafana"]
    container = mounted(grafana, tmp_path)
    (provider,) = yaml.safe_load((container / "etc/grafana/provisioning/dashboards/chatapp.yml").read_text("utf-8"))[
        "providers"
    ]
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"].removeprefix("/")
    found = container / provider["options"]["path"].removeprefix("/")

    assert sorted(path.name for path in found.glob("*.json")) == ["exporter.json", "fleet.json", "phone_number.json"]
    assert container / home == found / "fleet.json"


def test_the_demo_runs_the_demo_and_production_what_it_is_told() -> None:
    assert DEMO["services"]["exporter"]["command"] == ["demo"]
    assert serve_parameters()["config_file"] == Path("/etc/chatapp-exporter/exporter.yml")


def test_the_configuration_in_production_names_what_is_mounted() -> None:
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


def test_the_image_has_a_directory_for_the_state_that_its_user_may_write_to() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")

    assert "install -d -o 65532 -g 65532 /var/lib/chatapp-exporter\n" in dockerfile
    assert "/var/lib/chatapp-exporter" in volumes_of(PRODUCTION["services"]["exporter"])


def test_every_secret_is_a_file_that_git_leaves_alone() -> None:
    assert PRODUCTION["secrets"] == {
        name: {"file": f"secrets/{name}"}
        for name in ("access_key_id", "access_key_secret", "smtp_password", "slack_url")
    }
    assert "config/secrets/" in (ROOT / ".gitignore").read_text("utf-8").splitlines()
    assert "secrets" not in DEMO


def test_every_secret_that_alertmanager_reads_is_one() -> None:
    alertmanager = PRODUCTION["services"]["alertmanager"]
    text = (CONFIG / volumes_of(alertmanager)["/etc/alertmanager/alertmanager.yml"]).read_text("utf-8")
    targets = {secret["target"]: secret["source"] for secret in alertmanager["secrets"]}

    assert set(re.findall(r"_file: (\S+)", text)) == set(targets)
    assert set(targets.values()) < set(PRODUCTION["secrets"])


def test_production_is_up_again_after_a_restart_of_the_machine() -> None:
    assert {service["restart"] for service in PRODUCTION["services"].values()} == {"always"}
