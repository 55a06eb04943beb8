# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""Run rows, each in a process of its own, and write ``bench.json`` and ``bench.md``."""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from anomalib_cdd.training.files import write_text

from .measuring import environment
from .report import to_markdown
from .rows import ROWS
from .setting import Setting


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), help="which rows; default: all")
    parser.add_argument("--output", type=Path, default=Path("results/bench"), help="folder of bench.json and bench.md")
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds of each side, after one of warm-up")
    parser.add_argument("--threads", type=int, default=0, help="threads of torch; 0: its own choice")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: to see that every row runs")
    parser.add_argument("--row", help=argparse.SUPPRESS)  # what a row's own process is called with
    return parser.parse_args(arguments)


def run_row(options: argparse.Namespace) -> dict[str, Any]:
    """Run one row in a process of its own; what goes wrong is part of the result."""
    command = [sys.executable, "-m", "benchmarks", "--row", options.row, "--repeats", str(options.repeats)]
    command += ["--threads", str(options.threads)] + (["--quick"] if options.quick else [])
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in ended.stdout.splitlines() if line.startswith("{")]
    if ended.returncode or not lines:
        last = (ended.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        return {"error": f"exit status {ended.returncode}, its last line: {last}"}  # a negative status is a signal
    return json.loads(lines[-1])


def measure(name: str, setting: Setting) -> dict[str, Any]:
    """Measure a row in this process."""
    import torch

    if setting.threads:
        torch.set_num_threads(setting.threads)
    with tempfile.TemporaryDirectory() as folder:
        comparisons = ROWS[name](setting, Path(folder))
    return {"comparisons": [comparison.to_dict() for comparison in comparisons], "environment": environment()}


def main(arguments: list[str] | None = None) -> int:
    """Run the rows; return how many failed."""
    options = parse(arguments)
    if options.row:
        print(json.dumps(measure(options.row, Setting(options.repeats, options.threads, options.quick))))
        return 0
    path = options.output / "bench.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    options.output.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(options.rows, 1):
        print(f"[{number}/{len(options.rows)}] {name}: {(ROWS[name].__doc__ or '').splitlines()[0]}", flush=True)
        results[name] = run_row(argparse.Namespace(**vars(options) | {"row": name}))
        # at once: a run that is killed loses the row that it is in
        write_text(path, json.dumps(results, indent=1))
        write_text(options.output / "bench.md", to_markdown(results))
    print(to_markdown(results))
    return sum("error" in results[name] for name in options.rows)


if __name__ == "__main__":
    sys.exit(main())
