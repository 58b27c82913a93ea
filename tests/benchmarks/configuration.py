"""What reading 10,000 spaces costs, against `yaml.CSafeLoader` alone on the same spaces.

    python tests/benchmarks/configuration.py

*CPU time* is that of the process, the median of five. *of CSafeLoader* is its share of what PyYAML's fastest safe
loader takes to turn the YAML file into plain lists and mappings. Reading is more than that: every key is checked for
a second one, every value against its type, and every space against all others. *held* is what the settings and what
follows their files keep of each space, in bytes.

Exit status 1 when a configuration costs more than twice what the loader does.
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
MOST = 2.0
KEY = {"ALIBABA_CLOUD_ACCESS_KEY_ID": "LTAIexample", "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "example-secret"}


def space(number: int) -> str:
    """A line of YAML as a person writes it."""
    return f'- {{id: "{29348393884000 + number}", name: Contoso {number}, labels: {{team: emea}}}}\n'


def one_file(directory: Path) -> Path:
    path = directory / "one.yml"
    path.write_text("accounts:\n- name: acme\n  spaces:\n" + "".join(f"  {space(number)}" for number in range(SPACES)))
    return path


def one_json_file(directory: Path) -> Path:
    path = directory / "one.json"
    path.write_text(json.dumps(yaml.load(one_file(directory).read_text(), yaml.CSafeLoader)))
    return path


def many_files(directory: Path) -> Path:
    (directory / "spaces").mkdir()
    for number in range(FILES):
        spaces = range(number, SPACES, FILES)
        (directory / "spaces" / f"{number}.yml").write_text("".join(map(space, spaces)))
    path = directory / "many.yml"
    path.write_text("accounts: [{name: acme, space_files: [spaces/*.yml]}]")
    return path


FORMS: Mapping[str, Callable[[Path], Path]] = {
    "one YAML file": one_file,
    f"{FILES} YAML files": many_files,
    "one JSON file": one_json_file,
}


def cpu_seconds(work: Callable[[], object]) -> float:
    """The median of five runs, each without what the one before left behind."""
    taken = []
    for _ in range(5):
        gc.collect()
        before = time.process_time()
        work()
        taken.append(time.process_time() - before)
    return median(taken)


def bytes_held(path: Path) -> int:
    """Of memory, once the file is read."""
    gc.collect()
    tracemalloc.start()
    followed = configuration(path, KEY)
    settings = followed.load()
    gc.collect()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del settings, followed
    return held


def main() -> int:
    print(f"| {SPACES} spaces in | CPU time | of CSafeLoader | held |")
    print("|---|---:|---:|---:|", flush=True)
    passed = True
    with TemporaryDirectory() as directory:
        text = one_file(Path(directory)).read_text()
        loader = cpu_seconds(lambda: yaml.load(text, yaml.CSafeLoader))
        for name, written in FORMS.items():
            path = written(Path(directory))
            seconds = cpu_seconds(partial(load, path, KEY))
            held = bytes_held(path) / SPACES
            print(f"| {name} | {seconds:.2f} s | {seconds / loader:.2f} | {held:.0f} |", flush=True)
            passed = passed and seconds <= MOST * loader
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
