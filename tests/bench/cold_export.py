"""Cold ``export-model`` against the naive way, a cache hit, and ``--help``: whole processes, in turn, medians.

``python tests/bench/cold_export.py [NETWORK] [ROUNDS] [--batch 1:4:8] [--memory] [--json]``; every export runs in a
folder and a cache of its own. Beside the seconds stands the processor time of all its processes: on a busy machine that
ratio is the steadier one. ``--memory`` runs each way once more and reports the peak of the whole process tree: the sum
of its proportional set sizes, sampled. Where ``export-model`` knows ``--route``, the stock route is measured too.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
INTERVAL = 0.02  # seconds between two looks at the memory


@dataclass(frozen=True)
class Run:
    """One process with its children: wall clock and processor seconds, and where it was asked for the peak in MB."""

    wall: float
    cpu: float
    peak: float | None = None


class Peak(threading.Thread):
    """Samples the memory of a process and all its descendants until told to stop."""

    def __init__(self, process: int) -> None:
        super().__init__(daemon=True)
        self._process, self._over = process, threading.Event()
        self.megabytes = 0.0

    def run(self) -> None:
        while not self._over.wait(INTERVAL):
            total = sum(proportional(process) for process in tree(self._process))
            self.megabytes = max(self.megabytes, total / 1024)

    def stop(self) -> None:
        self._over.set()
        self.join()


def tree(process: int) -> Iterator[int]:
    yield process
    for listed in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            children = listed.read_text().split()
        except OSError:  # gone meanwhile
            continue
        for child in children:
            yield from tree(int(child))


def proportional(process: int) -> int:
    """Return a process's proportional set size in kB: shared pages count for their share."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:  # gone meanwhile
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")), 0)


def measure(command: list[str], cache: str, *, memory: bool = False) -> Run:
    environment = os.environ | {"ENGINEWORKS_CACHE": cache}
    began = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    sampler = Peak(process.pid) if memory else None
    if sampler is not None:
        sampler.start()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if sampler is not None:
        sampler.stop()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Run(wall, usage.ru_utime + usage.ru_stime, sampler.megabytes if sampler else None)


def ways(network: str, batch: str, folder: str) -> dict[str, list[str]]:
    """Return the commands that are compared, by name."""
    export = [str(BIN / "export-model"), network, "--fp16", "--batch", batch]
    largest = batch.rsplit(":", maxsplit=1)[-1]
    found = {
        "naive": [sys.executable, "-W", "ignore", str(HERE / "naive_export.py"), network, folder, largest],
        "ours": [*export, "-o", f"{folder}/bundle"],
    }
    if "--route" in subprocess.run([export[0], "--help"], check=True, capture_output=True, text=True).stdout:
        found["ours, stock route"] = [*export, "--route", "dynamo", "-o", f"{folder}/stock"]
    return found


def one_round(network: str, batch: str, *, memory: bool = False) -> dict[str, Run]:
    """Run every way once, each cold; then the cache hit of ours, and the help."""
    with tempfile.TemporaryDirectory() as folder:
        commands = ways(network, batch, folder)
        runs = {name: measure(line, f"{folder}/{name}", memory=memory) for name, line in commands.items()}
        runs["cache hit"] = measure([*commands["ours"], "--force"], f"{folder}/ours", memory=memory)
        runs["--help"] = measure([commands["ours"][0], "--help"], folder, memory=memory)
    return runs


def table(rounds: list[dict[str, Run]], peaks: dict[str, Run]) -> dict[str, dict[str, float]]:
    """Return for each way its medians, and the medians of its ratios to the naive way of the same round."""
    rows = {}
    for name in rounds[0]:
        row = {field: statistics.median(getattr(each[name], field) for each in rounds) for field in ("wall", "cpu")}
        for field in ("wall", "cpu"):
            ratios = [getattr(each[name], field) / getattr(each["naive"], field) for each in rounds]
            row[f"{field}_ratio"], row[f"{field}_ratio_least"], row[f"{field}_ratio_most"] = (
                statistics.median(ratios), min(ratios), max(ratios),
            )  # fmt: skip
        if name in peaks:
            row["peak_mb"] = peaks[name].peak or 0.0
        rows[name] = row
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", nargs="?", default="googlenet")
    parser.add_argument("rounds", nargs="?", type=int, default=5)
    parser.add_argument("--batch", default="1:8:32")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    rounds = []
    for _ in range(asked.rounds):
        rounds.append(one_round(asked.network, asked.batch))
        told = ", ".join(f"{name} {run.wall:.2f} s ({run.cpu:.2f} CPU)" for name, run in rounds[-1].items())
        print(told, file=sys.stderr, flush=True)
    peaks = one_round(asked.network, asked.batch, memory=True) if asked.memory else {}
    rows = table(rounds, peaks)
    if asked.json:
        each = [{name: asdict(run) for name, run in runs.items()} for runs in rounds]
        print(json.dumps({"network": asked.network, "batch": asked.batch, "median": rows, "rounds": each}, indent=2))
        return
    print(
        f"{asked.network}, --batch {asked.batch}, medians of {asked.rounds}; ratios to the naive way of the same round"
    )
    for name, row in rows.items():
        spread = f"({row['wall_ratio_least']:.2f} to {row['wall_ratio_most']:.2f})"
        peak = f", peak {row['peak_mb']:.0f} MB" if "peak_mb" in row else ""
        print(
            f"{name:<18} {row['wall']:6.2f} s = {row['wall_ratio']:.2f} {spread}, "
            f"CPU {row['cpu']:6.2f} s = {row['cpu_ratio']:.2f}{peak}"
        )


if __name__ == "__main__":
    main()
