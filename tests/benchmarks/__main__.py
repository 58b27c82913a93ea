"""All benchmarks, one after the other, and at the end what misses its limit.

    python tests/benchmarks [NAME...]

A quarter of an hour, on a machine with nothing else to do. Needs nginx and Prometheus.
"""

import subprocess
import sys
from pathlib import Path

ALL = ("scrape", "memory", "poll", "sweep", "start", "configuration", "growth", "budget")
FLAGS = {"sweep": ("--real",)}


def main() -> int:
    folder, missed = Path(__file__).parent, []
    for name in sys.argv[1:] or ALL:
        print(f"\n## {name}", flush=True)
        if subprocess.run((sys.executable, str(folder / f"{name}.py"), *FLAGS.get(name, ()))).returncode:
            missed.append(name)
    print(f"\nLimits missed in: {', '.join(missed) or 'none'}")
    return len(missed)


if __name__ == "__main__":
    sys.exit(main())
