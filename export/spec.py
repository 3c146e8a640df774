"""What MODEL on the command line means: a network of ours, one of a zoo, a factory in Python, or a file."""

import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

from engineworks.runtime.errors import ExportError

Kind = Literal["registry", "timm", "torchvision", "python", "onnx", "pt2"]
_ZOOS: tuple[Literal["timm", "torchvision"], ...] = ("timm", "torchvision")
_WEIGHTS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")


@dataclass(frozen=True)
class Spec:
    """MODEL taken apart: ``where`` is a zoo's name of the network, a module, or a file; ``factory`` a Python name."""

    kind: Kind
    where: str
    factory: str = ""

    @property
    def name(self) -> str:
        """A name that fits a folder and a manifest, without the folders of this machine."""
        if self.kind == "registry":
            return self.where
        if self.kind in _ZOOS:
            return _plain(f"{self.kind}-{self.where}")
        stem = PurePath(self.where).stem if self.where.endswith((".py", ".onnx", ".pt2")) else self.where
        return _plain(f"{stem}-{self.factory}" if self.factory else stem)

    @property
    def shown(self) -> str:
        """MODEL as it may be shown to others: files without their folders."""
        if self.kind in _ZOOS:
            return f"{self.kind}:{self.where}"
        where = PurePath(self.where).name if self.kind in {"onnx", "pt2"} or self.where.endswith(".py") else self.where
        return f"{where}:{self.factory}" if self.factory else where


def parse_model(text: str) -> Spec:
    """Tell what kind of MODEL this is, by its form alone.

    Raises:
        ExportError: a form that says too little: no factory behind a ``.py``, weights without a network.
    """
    for zoo in _ZOOS:
        if text.startswith(f"{zoo}:"):
            if text == f"{zoo}:":
                raise ExportError(f"{text}: which network of {zoo}? Write {zoo}:NAME.")
            return Spec(zoo, text.removeprefix(f"{zoo}:"))
    if text.endswith(".onnx"):
        return Spec("onnx", text)
    if text.endswith(".pt2"):
        return Spec("pt2", text)
    if text.endswith(_WEIGHTS):
        name = PurePath(text).name
        raise ExportError(f"{name} holds weights and no network. Name the network, with --weights {name}.")
    where, colon, factory = text.rpartition(":")
    if text.endswith(".py") or (colon and not re.fullmatch(r"[A-Za-z_][\w.]*", factory)):
        raise ExportError(f"{text}: which function makes the network? Write {where or text}:FUNCTION.")
    return Spec("python", where, factory) if colon and where else Spec("registry", text)


def _plain(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "model"
