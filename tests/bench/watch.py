"""Run a command and watch it: seconds, and the most memory that it and its children held at once."""

import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

_PAUSE = 0.02  # s between looks; a peak shorter than that is missed


def run_watched(command: list[str], environment: Mapping[str, str]) -> tuple[float, float]:
    """Return wall seconds, and megabytes: proportional set sizes, a page that two processes share counts once."""
    began, peak = time.perf_counter(), 0.0
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None:
            peak = max(peak, sum(map(_megabytes, _tree(process.pid))))
            time.sleep(_PAUSE)
        seconds = time.perf_counter() - began
        assert process.stderr is not None
        said = process.stderr.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} gave {process.returncode}:\n{said}")
    return seconds, peak


def _tree(root: int) -> list[int]:
    """List a process and all that come from it."""
    found = [root]
    for parent in found:
        for file in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, file.read_text().split())
            except OSError:
                continue
    return found


def _megabytes(process: int) -> float:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has just ended
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)
