"""serve-model under load, beside in-process ONNX Runtime and, where their Pythons are given, beside other servers.

    PYTHONPATH=.typing python tests/bench/serve_load.py BUNDLE [--clients 1 8 32] [--seconds 4] [--rounds 3]
        [--rival litserve=VENV/bin/python] [--rival mosec=…] [--rival bentoml=…] [--rival kserve=…]

Every server has the same graph and one process to compute in; the payload is one row of float32: binary tensors for us,
for kserve and (raw bytes) for mosec, base64 in JSON for litserve, JSON for bentoml. wrk makes the load (apt-get install
wrk) and shares the cores. Figures are medians of rounds, in turns; CPU is of the whole process tree for each request.
A rival's environment holds it, numpy and onnxruntime, and nothing of ours.
"""

import argparse
import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

RUN = """
import os, sys, numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = int(os.environ["THREADS"])
session = ort.InferenceSession(os.environ["GRAPH"], options, providers=["CPUExecutionProvider"])
name, port = session.get_inputs()[0].name, int(os.environ["PORT"])
shape = [int(axis) for axis in os.environ["SHAPE"].split(",")]
def run(x): return session.run(None, {name: x})[0]
"""
RIVALS = {
    "litserve": """
import base64, litserve
class API(litserve.LitAPI):
    def setup(self, device): pass
    def decode_request(self, request): return np.frombuffer(base64.b64decode(request["x"]), np.float32).reshape(shape)
    def batch(self, inputs): return np.concatenate(inputs)
    def predict(self, x): return run(x)
    def unbatch(self, output): return list(output)
    def encode_response(self, output): return {"y": base64.b64encode(np.ascontiguousarray(output).tobytes()).decode()}
if __name__ == "__main__":
    api = API(max_batch_size=int(os.environ["BATCH"]), batch_timeout=0.001)
    litserve.LitServer(api, accelerator="cpu", workers_per_device=1).run(port=port, host="127.0.0.1", log_level="error")
""",
    "mosec": """
from mosec import Server, Worker
class Net(Worker):
    def deserialize(self, data): return np.frombuffer(data, np.float32).reshape(shape)
    def forward(self, data): return list(run(np.concatenate(data))) if isinstance(data, list) else run(data)
    def serialize(self, data): return np.ascontiguousarray(data).tobytes()
if __name__ == "__main__":
    sys.argv = ["x", "--port", str(port), "--address", "127.0.0.1", "--log-level", "error"]
    server = Server()
    server.append_worker(Net, num=1, max_batch_size=max(int(os.environ["BATCH"]), 2), max_wait_time=1)
    server.run()
""",
    "bentoml": """
import bentoml
@bentoml.service(workers=1, metrics={"enabled": False})
class Net:
    @bentoml.api(batchable=True, max_batch_size=int(os.environ["BATCH"]))
    def predict(self, x: np.ndarray) -> np.ndarray: return run(x.astype(np.float32))
if __name__ == "__main__":
    folder, file = os.path.split(os.path.abspath(__file__))
    os.execvp(os.path.dirname(sys.executable) + "/bentoml", ["bentoml", "serve", f"{file[:-3]}:Net", "--working-dir",
        folder, "--port", str(port), "--host", "127.0.0.1"])
""",
    "kserve": """
import kserve
class Net(kserve.Model):
    def __init__(self):
        super().__init__("net"); self.ready = True
    def predict(self, payload, headers=None, response_headers=None):
        y = run(payload.inputs[0].as_numpy())
        output = kserve.InferOutput(name="y", shape=list(y.shape), datatype="FP32"); output.set_data_from_numpy(y)
        return kserve.InferResponse(payload.id or "1", "net", [output])
if __name__ == "__main__":
    kserve.ModelServer(http_port=port, enable_grpc=False, workers=1).start([Net()])
""",
}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def tree_cpu(pid: int) -> float:
    """CPU seconds of a process and of everything that came of it and is still there."""
    seconds, waiting = 0.0, [pid]
    while waiting:
        try:
            place = Path(f"/proc/{waiting.pop()}")
            fields = (place / "stat").read_text().rpartition(")")[2].split()
            seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            for task in (place / "task").iterdir():
                waiting += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
    return seconds


def wrk(
    folder: Path, url: str, body: bytes, headers: dict[str, str], clients: int, seconds: float
) -> tuple[int, float]:
    """Load an address; return the answered requests and their rate. Any answer but 2xx ends the run."""
    (folder / "body").write_bytes(body)
    lines = ['wrk.method = "POST"', f'local file = io.open("{folder}/body", "rb")', 'wrk.body = file:read("*a")']
    lines += [f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items()]
    (folder / "load.lua").write_text("\n".join(lines))
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds:g}s", "--timeout", "10s", "-s", f"{folder}/load.lua", url]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in told or "Socket errors" in told:
        raise SystemExit(f"{url}: {told}")
    count, rate = re.search(r"(\d+) requests in", told), re.search(r"Requests/sec:\s+([\d.]+)", told)
    assert count and rate
    return int(count[1]), float(rate[1])


class Target:
    """A server that was started: where it is, what it is sent, and its process."""

    def __init__(self, command: list[str], environment: dict[str, str], port: int, path: str, body: bytes) -> None:
        self.url, self.body, self.headers = f"http://127.0.0.1:{port}{path}", body, dict[str, str]()
        quiet = subprocess.DEVNULL
        folder = environment.get("FOLDER")  # some rivals write files where they are started
        self.process = subprocess.Popen(command, env=os.environ | environment, stdout=quiet, stderr=quiet, cwd=folder)
        end = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                if time.monotonic() > end or self.process.poll() is not None:
                    self.process.kill()
                    raise SystemExit(f"{command[0]}: did not start") from None
                time.sleep(0.1)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()


def open_inference(x: Any, name: str) -> tuple[bytes, dict[str, str]]:
    part = {"name": name, "datatype": "FP32", "shape": [*x.shape], "parameters": {"binary_data_size": x.nbytes}}
    text = json.dumps({"inputs": [part], "parameters": {"binary_data_output": True}}).encode()
    length = {"Inference-Header-Content-Length": str(len(text)), "Content-Type": "application/octet-stream"}
    return text + x.tobytes(), length


def ours(bundle: Path, manifest: Any, x: Any, threads: int) -> Target:
    body, headers = open_inference(x, manifest["inputs"][0]["name"])
    port = free_port()
    code = "from engineworks.runtime.serve import run; run()"
    command = [sys.executable, "-c", code, f"net={bundle}", "--port", str(port), "--threads", str(threads)]
    made = Target(command, {}, port, "/v2/models/net/infer", body)
    made.headers = headers
    return made


def rival(kind: str, python: str, folder: Path, bundle: Path, manifest: Any, x: Any, threads: int) -> Target:
    file = folder / f"{kind}_server.py"
    file.write_text(RUN + RIVALS[kind])
    port = free_port()
    environment = {
        "GRAPH": str((bundle / "model.onnx").resolve()),
        "PORT": str(port),
        "BATCH": str(manifest["batch"]["max"]),
    }
    environment |= {"SHAPE": ",".join(map(str, x.shape)), "THREADS": str(threads), "PYTHONPATH": ""}
    environment |= {"BENTOML_DO_NOT_TRACK": "true", "FOLDER": str(folder)}
    text = json.dumps({"x": base64.b64encode(x.tobytes()).decode()}).encode()
    sent = {"litserve": text, "mosec": x.tobytes(), "bentoml": json.dumps({"x": x.tolist()}).encode()}
    paths = {"litserve": "/predict", "mosec": "/inference", "bentoml": "/predict", "kserve": "/v2/models/net/infer"}
    headers = {"Content-Type": "application/octet-stream" if kind == "mosec" else "application/json"}
    body = sent.get(kind, b"")
    if kind == "kserve":
        body, headers = open_inference(x, manifest["inputs"][0]["name"])
    made = Target([python, str(file)], environment, port, paths[kind], body)
    made.headers = headers
    return made


def in_process(bundle: Path, x: Any, threads: int, seconds: float) -> float:
    """Rows a second of ONNX Runtime itself, the best of one and two callers."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(bundle / "model.onnx", options, providers=["CPUExecutionProvider"])
    feed, best = {session.get_inputs()[0].name: x}, 0.0
    for callers in (1, 2):
        counts = [0] * callers

        def repeat(place: int, counts: list[int] = counts) -> None:
            end = time.perf_counter() + seconds / 2
            while time.perf_counter() < end:
                session.run(None, feed)
                counts[place] += 1

        workers = [threading.Thread(target=repeat, args=(place,)) for place in range(callers)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = max(best, sum(counts) / (seconds / 2))
    return best


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rival", action="append", default=[], metavar="NAME=PYTHON")
    given = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not here: apt-get install wrk")
    manifest = json.loads((given.bundle / "manifest.json").read_text("utf-8"))
    shape = [1, *manifest["inputs"][0]["shape"][1:]]
    x = np.random.default_rng(0).random(shape).astype(np.float32)
    rivals = dict(text.split("=", 1) for text in given.rival)
    with tempfile.TemporaryDirectory() as name:
        measure(given, manifest, x, rivals, Path(name))
    return 0


def measure(given: Any, manifest: Any, x: Any, rivals: dict[str, str], folder: Path) -> None:
    rates: dict[tuple[str, int], list[tuple[float, float]]] = {}
    bare = list[float]()
    for _ in range(given.rounds):
        bare.append(in_process(given.bundle, x, given.threads, given.seconds))
        for kind in ("serve-model", *rivals):
            if kind == "serve-model":
                target = ours(given.bundle, manifest, x, given.threads)
            else:
                target = rival(kind, rivals[kind], folder, given.bundle, manifest, x, given.threads)
            try:
                time.sleep(2)  # workers of some come up after their port
                wrk(folder, target.url, target.body, target.headers, 1, 1)
                for clients in given.clients:
                    before = tree_cpu(target.process.pid)
                    count, rate = wrk(folder, target.url, target.body, target.headers, clients, given.seconds)
                    spent = 1e6 * (tree_cpu(target.process.pid) - before) / count
                    rates.setdefault((kind, clients), []).append((rate, spent))
            finally:
                target.stop()
    whole = median(bare)
    print(f"{manifest['name']}: ONNX Runtime in process {whole:,.0f} rows/s; medians of {given.rounds} rounds")
    print("  server       clients  requests/s  of in-process   CPU µs a request")
    for (kind, clients), found in rates.items():
        rate, spent = median(one[0] for one in found), median(one[1] for one in found)
        print(f"  {kind:<12} {clients:>7} {rate:>11,.0f} {rate / whole:>14.3f} {spent:>18,.0f}")


if __name__ == "__main__":
    sys.exit(main())
