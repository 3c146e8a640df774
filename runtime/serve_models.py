"""Which models there are, where they come from, and which version of each is being served.

Names and versions are looked up in what was configured or listed; none that a client sends ever becomes a path. Only
the event loop's thread changes what is served; bundles are opened and closed in other threads.
"""

import asyncio
import logging
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

from engineworks.runtime.bundle import MANIFEST, open_bundle
from engineworks.runtime.errors import BundleError, EngineworksError
from engineworks.runtime.oip_errors import Refusal
from engineworks.runtime.serve_model import Opening, Served, open_served

_log = logging.getLogger("engineworks.serve")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
Key = tuple[str, str]


@dataclass
class Models:
    """The sources of models, by name and version, and those that are loaded.

    Attributes:
        opening: how bundles are opened.
        threads: where they are opened and closed.
        repository: a folder of bundles (``NAME/`` or ``NAME/VERSION/``) besides those named one by one.
        better: gives, for a bundle's folder, the one to open instead: the same bundle with an engine for this GPU.
    """

    opening: Opening
    threads: Executor
    repository: Path | None = None
    sources: dict[Key, Path] = field(default_factory=dict)
    loaded: dict[str, dict[str, Served]] = field(default_factory=dict)
    refused: dict[Key, str] = field(default_factory=dict)
    better: Callable[[Path], Path] = lambda path: path

    def add(self, text: str) -> None:
        """Take ``BUNDLE``, ``NAME=BUNDLE`` or ``NAME:VERSION=BUNDLE``; without a version, the next free one.

        Raises:
            BundleError: no bundle, a name or version that cannot be one, or one that is taken.
        """
        label, _, path = text.partition("=") if "=" in text and not Path(text).exists() else ("", "", text)
        name, _, version = label.partition(":")
        name = name or open_bundle(path).manifest.name
        taken = {number for known, number in self.sources if known == name}
        version = version or str(max(map(int, taken), default=0) + 1)
        if not _NAME.fullmatch(name) or not _VERSION.fullmatch(version) or version in taken:
            raise BundleError(
                f"{text}: expected a name of letters, digits, '.', '_', '-' and a whole version that is free; "
                f"got {name!r} version {version!r}. Write NAME:VERSION=BUNDLE."
            )
        self.sources[name, version] = Path(path)

    def rescan(self) -> None:
        """Look for bundles in the repository folder; those that were there and are not any more stay served."""
        if self.repository is not None:
            self.sources |= dict(_bundles(self.repository))

    def find(self, name: str, version: str | None = None) -> Served:
        """Return a loaded version; the highest where none is given.

        Raises:
            Refusal: 404; there is none.
        """
        versions = self.loaded.get(name)
        if not versions:
            raise Refusal(404, "unknown_model", "no such model is loaded. GET /v2 says what there is.")
        served = versions.get(max(versions, key=int) if version is None else version)
        if served is None:
            raise Refusal(404, "unknown_model", f"the model has no such version, but {', '.join(sorted(versions))}.")
        return served

    def all(self) -> Iterator[Served]:
        """Go through what is loaded, by name and version."""
        for name in sorted(self.loaded):
            for version in sorted(self.loaded[name], key=int):
                yield self.loaded[name][version]

    def ready(self) -> bool:
        """Tell whether everything that is loaded can answer, and something is; what failed is tried again beside."""
        failing = [served for served in self.all() if served.failing]
        for served in failing:
            if not served.probing:
                served.probing = True
                self.threads.submit(served.probe)
        return bool(self.loaded) and not failing

    async def load(self, key: Key) -> Served:
        """Open a version, warm it up, and let it take over from the one that was served.

        Raises:
            EngineworksError: it cannot be opened; what was served goes on.
        """
        loop = asyncio.get_running_loop()
        try:
            served = await loop.run_in_executor(self.threads, self._open, key, self.sources[key])
        except EngineworksError as error:
            self.refused[key] = str(error)
            raise
        self.refused.pop(key, None)
        before = self.loaded.get(key[0], {}).get(key[1])
        self.loaded.setdefault(key[0], {})[key[1]] = served
        if before is not None:
            self._retire(before)
        return served

    def _open(self, key: Key, source: Path) -> Served:
        place = self.better(source)
        if place != source:
            try:
                return open_served(*key, place, self.opening)
            except EngineworksError as error:
                _log.warning("model %s version %s: what was compiled here does not open: %s", *key, error)
        return open_served(*key, source, self.opening)

    def unload(self, name: str) -> None:
        """Stop serving every version of a model; requests that hold one are still answered."""
        for served in self.loaded.pop(name, {}).values():
            self._retire(served)

    def release(self, served: Served) -> None:
        """Take back one hold of a version."""
        served.users -= 1
        self._close_if_done(served)

    def _retire(self, served: Served) -> None:
        served.retired = True
        self._close_if_done(served)

    def _close_if_done(self, served: Served) -> None:
        if served.retired and served.users == 0:
            self.threads.submit(_close, served)


def _close(served: Served) -> None:
    try:
        served.close()
    except EngineworksError as error:
        _log.error("model %s version %s did not close: %s", served.name, served.version, error)


def _bundles(folder: Path) -> Iterator[tuple[Key, Path]]:
    try:
        entries = sorted(entry for entry in folder.iterdir() if _NAME.fullmatch(entry.name))
    except OSError as error:
        raise BundleError(f"{folder}: expected a folder of bundles ({error.strerror}).") from error
    for entry in entries:
        if (entry / MANIFEST).is_file():
            yield (entry.name, "1"), entry
        elif entry.is_dir():
            for inner in sorted(entry.iterdir()):
                if _VERSION.fullmatch(inner.name) and (inner / MANIFEST).is_file():
                    yield (entry.name, inner.name), inner
