"""Engines compiled where they run: what a bundle lacks for this GPU is built beside the server, and then takes over.

The compiler works in a process of its own (``engineworks.export.rebuild``), which may crash or run out of memory
without the server. Until its engine is there, and where there is none to be had, ONNX Runtime answers, and the log says
why.
"""

import asyncio
import logging
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from engineworks.runtime.bundle import open_bundle
from engineworks.runtime.cuda import Gpu, probe_gpu
from engineworks.runtime.engine_cache import find_entry
from engineworks.runtime.errors import EngineworksError
from engineworks.runtime.protocol import parse_device
from engineworks.runtime.serve_metrics import Metrics
from engineworks.runtime.serve_model import Opening, Served
from engineworks.runtime.serve_models import Key, Models
from engineworks.runtime.serve_watch import Mark, mark
from engineworks.runtime.trt_runtime import MODULES, absent

_log = logging.getLogger("engineworks.serve")
_LIMIT = 3600.0  # seconds for one engine: minutes are usual; a compiler that hangs is ended
COMMAND = (sys.executable, "-m", "engineworks.export.rebuild")


def gpu_of(opening: Opening) -> Gpu:
    """Return the GPU that models are opened on; or none, and why."""
    return probe_gpu(parse_device(opening.device).index)


def better_by(folder: Path, opening: Opening) -> Callable[[Path], Path]:
    """Return what finds a bundle's entry in the cache; where there is none, the bundle's own folder stays."""
    gpu = gpu_of(opening)

    def better(path: Path) -> Path:
        try:
            return find_entry(open_bundle(path), folder, gpu) or path
        except (EngineworksError, OSError):  # a bundle that does not open is told when it is opened
            return path

    return better


class Build:
    """Looks every ``seconds`` for a version that ONNX Runtime serves, and compiles an engine for it, once each."""

    def __init__(
        self,
        models: Models,
        metrics: Metrics,
        folder: Path,
        *,
        seconds: float = 1.0,
        limit: float = _LIMIT,
        command: tuple[str, ...] = COMMAND,
    ) -> None:
        self._models, self._metrics, self._folder = models, metrics, folder
        self._seconds, self._limit, self._command = seconds, limit, command
        self._gpu = gpu_of(models.opening)
        self._tried: dict[Key, Mark] = {}

    async def run(self) -> None:
        """Look for ever; where no engine can be built here, say so once and leave it."""
        if problem := self.impossible():
            _log.warning("--build-engines: %s. ONNX Runtime serves.", problem)
            return
        while True:
            try:
                await self.look()
            except Exception as error:  # one look that failed must not be the last
                _log.warning("build: %s: %s", type(error).__name__, error)
            await asyncio.sleep(self._seconds)

    def impossible(self) -> str:
        """Return why no engine can be built here: no GPU, or no compiler; empty where one can."""
        if self._gpu.target is None:
            return self._gpu.problem
        reasons = [absent(flavour) for flavour in MODULES]
        return "; ".join(reasons) if all(reasons) else ""

    async def look(self) -> None:
        """Look once; compile, one after another, what lacks an engine and was not tried since it changed."""
        for key, path in list(self._models.sources.items()):
            served, now = self._served(key), mark(path)
            if served is None or now is None or now == self._tried.get(key) or not _wants(served):
                continue
            self._tried[key] = now
            problem = await self._build(key, path)
            self._metrics.built("failed" if problem else "ok")
            if problem:
                _log.error("model %s version %s: no engine, ONNX Runtime serves on: %s", *key, problem)
            else:
                _log.warning("model %s version %s: the engine that was compiled here took over", *key)

    async def _build(self, key: Key, path: Path) -> str:
        """Compile, and let the engine take over; return why it did not."""
        _log.warning("model %s version %s: compiling an engine for %s", *key, self._gpu.target)
        try:
            if problem := await self._compile(path):
                return problem
            if key not in self._models.sources or self._served(key) is None:
                return "the model was unloaded meanwhile"
            served = await self._models.load(key)
        except EngineworksError as error:
            return str(error)
        except OSError as error:  # no process could be started, or a file could not be read
            return f"{type(error).__name__}: {error}"
        return f"it was compiled, and does not open: {served.session.backend}" if _wants(served) else ""

    async def _compile(self, path: Path) -> str:
        """Run the compiler's process to its end; return the last line of what it complained of, if it failed."""
        process = await asyncio.create_subprocess_exec(
            *(*self._command, str(path), "--cache", str(self._folder), "--target", str(self._gpu.target)),
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=PIPE,
            env=visible(os.environ, self._gpu.index),
        )
        try:
            _, said = await asyncio.wait_for(process.communicate(), self._limit)
        except BaseException as error:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            if isinstance(error, TimeoutError):
                return f"the compiler was not done after {self._limit:g} s, and was ended"
            raise
        return _complaint(process.returncode or 0, said.decode("utf-8", "replace"))

    def _served(self, key: Key) -> Served | None:
        return self._models.loaded.get(key[0], {}).get(key[1])


def visible(environment: Mapping[str, str], index: int) -> dict[str, str]:
    """Return an environment in which the GPU of this number is the only one, and so the one that is compiled for."""
    shown = [name.strip() for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    chosen = shown[index] if index < len(shown) else str(index)
    return {**environment, "CUDA_VISIBLE_DEVICES": chosen}


def _complaint(status: int, said: str) -> str:
    if status == 0:
        return ""
    words = next((line for line in reversed(said.split("\n")) if line.strip()), "it said nothing")
    how = f"signal {-status}" if status < 0 else f"status {status}"
    return f"{words.removeprefix('rebuild: ')} ({how})"


def _wants(served: Served) -> bool:
    return served.backend.startswith("onnxruntime")
