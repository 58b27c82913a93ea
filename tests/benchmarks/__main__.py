"""All benchmarks, one after the other, and at the end what misses its limit.

    python tests/benchmarks [NAME...]

A quarter of an hour, on a machine with nothing else to do. `scrape` needs nginx and Prometheus.
"""

import shutil
import subprocess
import sys
from pathlib import Path

ALL = ("scrape", "memory", "poll", "sweep", "start", "configuration", "growth", "budget")
FLAGS = {"sweep": ("--real",)}


PACKAGES = {"nginx": "nginx-light", "prometheus": "prometheus"}


def main() -> int:
    names = sys.argv[1:] or ALL
    lacking = [package for program, package in PACKAGES.items() if not shutil.which(program)]
    if lacking and "scrape" in names:
        sys.exit(f"error: scrape needs {' and '.join(lacking)} (apt-get install {' '.join(lacking)})")
    directory, missed = Path(__file__).parent, []
    for name in names:
        print(f"\n## {name}", flush=True)
        if subprocess.run((sys.executable, str(directory / f"{name}.py"), *FLAGS.get(name, ()))).returncode:
            missed.append(name)
    print(f"\nLimits missed in: {', '.join(missed) or 'none'}")
    return len(missed)


if __name__ == "__main__":
    sys.exit(main())
