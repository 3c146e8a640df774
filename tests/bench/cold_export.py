"""Cold ``export-model`` against the naive way, a cache hit, and ``--help``: whole processes, in turn, medians.

``python tests/bench/cold_export.py [NETWORK] [ROUNDS]``; every export runs in a folder and a cache of its own.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent


def seconds(command: list[str], cache: str) -> float:
    environment = os.environ | {"ENGINEWORKS_CACHE": cache}
    began = time.perf_counter()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def main(network: str = "googlenet", rounds: str = "5") -> None:
    ours, naive, hits, helps = [], [], [], []
    for _ in range(int(rounds)):
        with tempfile.TemporaryDirectory() as folder:
            export = [str(BIN / "export-model"), network, "--fp16", "-o", f"{folder}/bundle"]
            rival = [sys.executable, "-W", "ignore", str(HERE / "naive_export.py"), network, folder]
            naive.append(seconds(rival, folder))
            ours.append(seconds(export, f"{folder}/cache"))
            hits.append(seconds([*export, "--force"], f"{folder}/cache"))
            helps.append(seconds([export[0], "--help"], folder))
            print(f"naive {naive[-1]:.2f} s, ours {ours[-1]:.2f} s, hit {hits[-1]:.2f} s, --help {helps[-1]:.2f} s")
    ratios = [mine / theirs for mine, theirs in zip(ours, naive, strict=True)]
    print(f"{network}: ours / naive: median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"cache hit: median {statistics.median(hits):.2f} s; --help: median {statistics.median(helps):.2f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
