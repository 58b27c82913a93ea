"""Runs all benchmarks, or those with the given names, and prints which of them exceed a limit.

    python tests/benchmarks [NAME...]

Takes 15 minutes. Run it on a machine without other load. `scrape` requires nginx and Prometheus.
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
    missing = [package for program, package in PACKAGES.items() if not shutil.which(program)]
    if missing and "scrape" in names:
        sys.exit(f"error: scrape requires {' and '.join(missing)} (apt-get install {' '.join(missing)})")
    directory, failed = Path(__file__).parent, []
    for name in names:
        print(f"\n## {name}", flush=True)
        if subprocess.run((sys.executable, str(directory / f"{name}.py"), *FLAGS.get(name, ()))).returncode:
            failed.append(name)
    print(f"\nBenchmarks over a limit: {', '.join(failed) or 'none'}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
