"""What importing penstock costs beyond the interpreter's own start.

Fresh processes, in turn, so that a slow moment of the machine hits all alike; the median of each.
The bar: `import penstock` under 50 ms more than a bare interpreter.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

ROUNDS = 15
PROGRAMS = {
    "bare interpreter": ["-c", "pass"],
    "import penstock": ["-c", "import penstock"],
    "penstock --help": ["-m", "penstock", "--help"],
    "import numpy": ["-c", "import numpy"],
}


def start_s(arguments: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    times: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for arguments in PROGRAMS.values():
        start_s(arguments)  # once before the clock runs: bytecode and page cache
    for _ in range(ROUNDS):
        for name, arguments in PROGRAMS.items():
            times[name].append(start_s(arguments))
    medians = {name: statistics.median(values) for name, values in times.items()}
    bare = medians["bare interpreter"]
    for name, value in medians.items():
        print(f"{name:<18} {value * 1e3:7.1f} ms   +{(value - bare) * 1e3:6.1f} ms   {value / bare:5.2f} ×")
    print(json.dumps({"benchmark": "import_time", "ms": {name: round(v * 1e3, 2) for name, v in medians.items()}}))


if __name__ == "__main__":
    main()
