"""Measures the cost of reading 10,000 spaces, compared with `yaml.CSafeLoader` alone.

    python tests/benchmarks/configuration.py

*CPU time* is the median CPU time of five runs. *of CSafeLoader* is its ratio to the CPU time of `CSafeLoader`, PyYAML's
fastest safe loader, which only converts YAML to lists and mappings. The exporter also checks types and duplicates.
*memory* is the size of the settings and of the followed files, in bytes per space.

Exit status: 1 if the CPU time of a configuration is more than twice that of the loader.
"""

import gc
import json
import sys
import time
import tracemalloc
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import yaml
from configured import configuration, load

SPACES = 10_000
FILES = 500
MAX_RATIO = 2.0
KEY = {"ALIBABA_CLOUD_ACCESS_KEY_ID": "LTAIexample", "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "example-secret"}


def space(number: int) -> str:
    """A space as a line of YAML."""
    return f'- {{id: "{29348393884000 + number}", name: Contoso {number}, labels: {{team: emea}}}}\n'


def one_yaml_file(directory: Path) -> Path:
    path = directory / "one.yml"
    path.write_text("accounts:\n- name: acme\n  spaces:\n" + "".join(f"  {space(number)}" for number in range(SPACES)))
    return path


def one_json_file(directory: Path) -> Path:
    path = directory / "one.json"
    path.write_text(json.dumps(yaml.load(one_yaml_file(directory).read_text(), yaml.CSafeLoader)))
    return path


def many_yaml_files(directory: Path) -> Path:
    (directory / "spaces").mkdir()
    for number in range(FILES):
        spaces = range(number, SPACES, FILES)
        (directory / "spaces" / f"{number}.yml").write_text("".join(map(space, spaces)))
    path = directory / "many.yml"
    path.write_text("accounts: [{name: acme, space_files: [spaces/*.yml]}]")
    return path


FORMS: Mapping[str, Callable[[Path], Path]] = {
    "one YAML file": one_yaml_file,
    f"{FILES} YAML files": many_yaml_files,
    "one JSON file": one_json_file,
}


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the median CPU time of five runs, with a garbage collection before each run."""
    seconds = []
    for _ in range(5):
        gc.collect()
        before = time.process_time()
        work()
        seconds.append(time.process_time() - before)
    return median(seconds)


def memory_bytes(path: Path) -> int:
    """Return the memory of a configuration after it is read."""
    gc.collect()
    tracemalloc.start()
    loaded = configuration(path, KEY)
    settings = loaded.load()
    gc.collect()
    memory, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del settings, loaded
    return memory


def main() -> int:
    print(f"| {SPACES} spaces in | CPU time | of CSafeLoader | memory |")
    print("|---|---:|---:|---:|", flush=True)
    passed = True
    with TemporaryDirectory() as directory:
        text = one_yaml_file(Path(directory)).read_text()
        loader_seconds = cpu_seconds(lambda: yaml.load(text, yaml.CSafeLoader))
        for name, write in FORMS.items():
            path = write(Path(directory))
            seconds = cpu_seconds(partial(load, path, KEY))
            memory = memory_bytes(path) / SPACES
            print(f"| {name} | {seconds:.2f} s | {seconds / loader_seconds:.2f} | {memory:.0f} |", flush=True)
            passed = passed and seconds <= MAX_RATIO * loader_seconds
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
