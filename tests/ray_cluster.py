"""A Ray cluster of two nodes on this machine, an application on it, load, and one node killed; counts as JSON.

    python tests/ray_cluster.py CONFIG.yaml

CONFIG is what ``deploy-model --ray`` wrote, of a bundle with one float32 input. Everything listens on loopback. It runs
in a process of its own, for Ray keeps threads and signal handlers that a test's process should not have.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

CALLERS = 16
ROWS = 16  # in a request, so that it is long under way
TIMEOUT = 60.0  # seconds for one request: two loaded cores are slow, and nothing is judged by time
SECONDS = 60.0  # at most, for each step that waits for Ray


class Load:
    """Callers that each ask, one request after another, until told to stop; a failed request is asked again at once."""

    def __init__(self, url: str, body: bytes, right: bytes) -> None:
        self._url, self._body, self._right = url, body, right
        self._stop, self._lock = threading.Event(), threading.Lock()
        self.counts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._call, daemon=True) for _ in range(CALLERS)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let every caller finish its request."""
        self._stop.set()
        for thread in self._threads:
            thread.join(SECONDS)

    def _call(self) -> None:
        while not self._stop.is_set():
            self._count("sent")
            if self._once():
                continue
            self._count("failed")
            for attempt in range(1, 101):
                self._count("retried")
                if self._once():
                    self._count("answered by a retry")
                    with self._lock:
                        self.counts["most retries"] = max(self.counts["most retries"], attempt)
                    break
                time.sleep(0.05)

    def _once(self) -> bool:
        try:
            with urllib.request.urlopen(urllib.request.Request(self._url, self._body), timeout=TIMEOUT) as answer:
                if answer.read() != self._right:
                    self._count("wrong")
                return True
        except urllib.error.HTTPError as error:
            self._note(f"{error.code} {error.read()[:80]!r}")
        except OSError as error:
            self._note(f"{type(error).__name__} {error}")
        return False

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def _note(self, what: str) -> None:
        with self._lock:
            self.errors[what] += 1


def main(config: Path) -> dict[str, Any]:
    """Play it; return the counts."""
    folder = tempfile.mkdtemp(prefix="ray-")  # short: Ray's sockets lie below it, and their paths may have 107 signs
    os.environ |= {
        "RAY_TMPDIR": folder,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_metrics_collection": "0",  # its port would be open to all
        "RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING": "0",  # or the other node would have no request to lose
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # how Ray is kept to loopback; else it takes an outward address
    }
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        return _run(cluster, config, Path(folder, "ray", "session_latest", "logs"))
    finally:
        cluster.shutdown()
        _remove(Path(folder))


def _run(cluster: Any, config: Path, logs: Path) -> dict[str, Any]:
    dashboard, port = _free_port(), _free_port()
    address, url = f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{port}"
    node = {"num_cpus": 2, "node_ip_address": "127.0.0.1"}
    cluster.add_node(**node, include_dashboard=True, dashboard_host="127.0.0.1", dashboard_port=dashboard)
    other = cluster.add_node(**node)
    cluster.wait_for_nodes()
    # two nodes of one machine have one address between them, and so one proxy
    text = config.read_text("utf-8").replace("port: 8000", f"port: {port}").replace("EveryNode", "HeadOnly")
    config.write_text(text, "utf-8")
    began = time.monotonic()
    _deploy(config, address)
    _wait(lambda: _running(address) == 2)
    report = {"seconds until ready": round(time.monotonic() - began, 1)}
    return report | _play(url, address, other, logs) | _update(url, address, config)


def _play(url: str, address: str, node: Any, logs: Path) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=TIMEOUT) as answer:
        assert answer.status == 200
    listening = _exposed()
    model = _model(url)
    body = _request(model)
    infer = f"{url}/v2/models/{model['name']}/infer"
    with urllib.request.urlopen(urllib.request.Request(infer, body), timeout=TIMEOUT) as answer:
        right = answer.read()
    refused = _status(infer, b"{")
    replicas = _replicas(address)
    load = Load(infer, body, right)
    time.sleep(2)
    before = dict(load.counts)
    killed = _kill(node)
    gone = time.monotonic()
    lost = [replica for replica in replicas if replica["pid"] in killed]
    _wait(lambda: _running(address) < 2)
    _wait(lambda: _running(address) == 2)
    back = time.monotonic() - gone
    after = load.counts["failed"]
    time.sleep(2)
    load.stop()
    with urllib.request.urlopen(f"{url}/v2/models/{model['name']}/stats", timeout=TIMEOUT) as answer:
        stats = json.load(answer)["model_stats"][0]
    return {
        "callers": CALLERS,
        "rows in a request": ROWS,
        "rows in a run, on average": round(stats["inference_count"] / stats["execution_count"], 1),
        "nodes with a replica": len({replica["node_id"] for replica in replicas}),
        "exposed": listening,
        "status of half a request": refused,
        "failed before the kill": before.get("failed", 0),
        "sent before the kill": before["sent"],
        "processes killed": len(killed),
        "replicas killed": len(lost),
        "answered by what was killed": sum(_answered(logs / replica["log_file_path"].lstrip("/")) for replica in lost),
        "seconds until two replicas": round(back, 1),
        "failed after that": load.counts["failed"] - after,
        **load.counts,
        "errors": dict(load.errors),
    }


def _update(url: str, address: str, config: Path) -> dict[str, Any]:
    """Deploy other settings under load: every replica is replaced, and no request is lost."""
    infer, body = f"{url}/v2/models/{_model(url)['name']}/infer", _request(_model(url))
    with urllib.request.urlopen(urllib.request.Request(infer, body), timeout=TIMEOUT) as answer:
        right = answer.read()
    before = {replica["pid"] for replica in _replicas(address)}
    load = Load(infer, body, right)
    config.write_text(config.read_text("utf-8").replace("threads: 1", "threads: 2"), "utf-8")
    _deploy(config, address)
    _wait(lambda: len({replica["pid"] for replica in _replicas(address)} - before) == 2 and _running(address) == 2)
    time.sleep(1)
    load.stop()
    return {"sent during an update": load.counts["sent"], "failed during an update": load.counts["failed"]}


def _deploy(config: Path, address: str) -> None:
    serve = Path(sys.executable).with_name("serve")
    subprocess.run([serve, "deploy", config, "--address", address], check=True, capture_output=True, timeout=SECONDS)


def _model(url: str) -> Any:
    with urllib.request.urlopen(f"{url}/v2/repository/index", b"{}", timeout=TIMEOUT) as answer:
        name = json.load(answer)[0]["name"]
    with urllib.request.urlopen(f"{url}/v2/models/{name}", timeout=TIMEOUT) as answer:
        return json.load(answer)


def _request(model: Any) -> bytes:
    (tensor,) = model["inputs"]
    shape = [ROWS, *tensor["shape"][1:]]
    size = 1
    for axis in shape:
        size *= axis
    data = [(index % 7) / 7 for index in range(size)]
    return json.dumps({"inputs": [tensor | {"shape": shape, "data": data}]}).encode()


def _status(url: str, body: bytes) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=TIMEOUT) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def _replicas(address: str) -> list[dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"{address}/api/serve/applications/", timeout=TIMEOUT) as answer:
            details = json.load(answer)
    except OSError:
        return []
    deployments = [one for app in details["applications"].values() for one in app["deployments"].values()]
    return [replica for one in deployments for replica in one["replicas"] if replica["state"] == "RUNNING"]


def _running(address: str) -> int:
    return len(_replicas(address))


def _answered(log: Path) -> int:
    """Count the requests in a replica's own log."""
    return log.read_text("utf-8").count(" POST ")


def _wait(done: Any) -> None:
    deadline = time.monotonic() + SECONDS
    while not done():
        if time.monotonic() > deadline:
            raise SystemExit("ray_cluster: it did not come about in time")
        time.sleep(0.1)


def _kill(node: Any) -> set[int]:
    """Take every process of a node away at once, as a power cut does: those that the node itself started."""
    started = [info.process.pid for infos in node.all_processes.values() for info in infos]
    pids = started + [child for pid in started for child in _below(pid)]
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return set(pids)


def _below(pid: int) -> list[int]:
    try:
        text = " ".join(file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/children"))
    except OSError:
        return []
    return [found for child in map(int, text.split()) for found in (child, *_below(child))]


def _exposed() -> list[str]:
    """List what listens on another address than loopback, of the processes below this one."""
    mine = {os.getpid(), *_below(os.getpid())}
    inodes = dict[str, str]()
    for pid in mine:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                target = str(link.readlink())
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes[target[8:-1]] = Path(f"/proc/{pid}/comm").read_text().strip()
    found = []
    tables = {"tcp": ("0100007F",), "tcp6": ("0" * 24 + "01000000", "0000000000000000FFFF00000100007F")}
    for table, loopback in tables.items():
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes and fields[1].partition(":")[0] not in loopback:
                found.append(f"{inodes[fields[9]]} {int(fields[1].partition(':')[2], 16)}")
    return sorted(found)


def _remove(folder: Path) -> None:
    """Remove a folder into which processes that are about to end may still write."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.25)
        if not folder.exists():
            return


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1])), indent=1))
