"""Hot reload: a bundle that changes is opened beside the one being served, and takes over when it is warm."""

import asyncio
import logging
from pathlib import Path

from engineworks.runtime.bundle import MANIFEST
from engineworks.runtime.errors import EngineworksError
from engineworks.runtime.serve_metrics import Metrics
from engineworks.runtime.serve_models import Key, Models

_log = logging.getLogger("engineworks.serve")
Mark = tuple[int, int, int] | None


class Watch:
    """Looks at every bundle's manifest each ``seconds``; a changed or new one is loaded, a broken one refused."""

    def __init__(self, models: Models, metrics: Metrics, seconds: float) -> None:
        self._models, self._metrics, self._seconds = models, metrics, seconds
        self._seen: dict[Key, Mark] = {key: mark(path) for key, path in models.sources.items()}

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(self._seconds)
            try:
                await self.look()
            except Exception as error:  # the repository folder is gone for a while, or memory is short: look again
                _log.warning("watch: %s: %s", type(error).__name__, error)

    async def look(self) -> None:
        """Look once, and load what has changed since."""
        self._models.rescan()
        for key, path in list(self._models.sources.items()):
            now = mark(path)
            if now is None or now == self._seen.get(key):
                continue
            self._seen[key] = now
            try:
                await self._models.load(key)
            except EngineworksError as error:
                self._metrics.loaded("refused")
                _log.error("model %s version %s: refused, the old one serves on: %s", *key, error)
            else:
                self._metrics.loaded("ok")
                _log.warning("model %s version %s: changed, and took over", *key)


def mark(path: Path) -> Mark:
    """Return what tells one manifest from another without reading it; None where there is none just now."""
    try:
        status = (path / MANIFEST).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
