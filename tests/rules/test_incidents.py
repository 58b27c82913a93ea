"""Every incident of the library, judged by promtool with the shipped rules."""

import subprocess
from pathlib import Path

import pytest
import yaml
from incident import INCIDENTS, load, promtool_test, record


@pytest.mark.parametrize("path", sorted(INCIDENTS.glob("*.yml")), ids=lambda path: path.stem)
def test_what_must_fire_fires_and_nothing_else(path: Path, tmp_path: Path) -> None:
    incident = load(path)
    world, series = record(incident)
    judged = tmp_path / "test.yml"
    judged.write_text(yaml.safe_dump(promtool_test(incident, world, series), sort_keys=False, width=10_000))

    promtool = subprocess.run(["promtool", "test", "rules", judged], capture_output=True, text=True, check=False)

    assert promtool.returncode == 0, promtool.stderr
