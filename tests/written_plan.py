"""Write plans as TensorRT-RTX 1.7.1 writes them, small enough to be counted by hand; no compiler is needed."""

import struct

KINDS = {"float16": "half", "float32": "float", "int8": "int8", "int64": "int64"}


def tensor(name: str, dtype: str, *dims: int | str, host: bool = False) -> str:
    shape = " ".join(f'"{axis}"' if isinstance(axis, str) else str(axis) for axis in dims)
    memory = "mem_prop=100" if host else "mem_prop=0"
    ones = " ".join("1" for _ in dims)
    return (
        f'  tensor={{ alignment=128 dims={{ {shape} }} {memory} name="{name}" offset=0 rank0=0 region="" '
        f"stride_order={{ {ones} }} strides={{ {ones} }} type={KINDS.get(dtype, dtype)} }}"
    )


def statement(kind: str, name: str, inputs: str, outputs: str, layers: str = "", more: str = "") -> str:
    given, made = (" ".join(f'"{word}"' for word in words.split()) for words in (inputs, outputs))
    keys = ("input_args", "output_args") if kind in {"function", "runtime_fusion"} else ("input", "output")
    named = f"name={name}" if kind in {"function", "runtime_fusion"} else f'name="{name}"'
    text = "\x1f".join(f"[ONNX Layer: {layer}]" for layer in layers.split())
    return f'  {kind}={{ {named} {keys[1]}={{{made} }} {keys[0]}={{{given} }} stream=0 {more} layers="{text}" }}'


def block(inputs: str, tensors: list[str], statements: list[str], *, version: int = 5, sizes: str = "") -> bytes:
    named = " ".join(f'"{word}"' for word in inputs.split())
    lines = "\n".join
    text = (
        f"header {{\n  version = {version}\n  inputs={{ {named} }}\n  accelerators={{sm86 }}\n\n}}\n"
        f"descriptors {{\n{lines(tensors)}\n}}\nmain {{\n label bb1: \n{lines(statements)}\n}}\n"
        f"shape_main {{\n label bb2: \n{sizes}}}\n"
    ).encode()
    return b"NLYM\xa1\xda\x1e\x00" + struct.pack("<Q", len(text)) + text + b"\0"


def plan(*blocks: bytes, version: tuple[int, int, int, int] = (1, 7, 1, 116)) -> bytes:
    body = bytes(32) + b"".join(blocks)
    return b"vtrt" + bytes(12) + struct.pack("<Q4B4x", 32 + len(body), *version) + body


PRODUCT = "trA=false trB=false"
FREE = """  copy={ name="a" output={"n_shapeInput" } input={"n_shapeInput.1" }  stream=0  speculate={ }}
  memset={ name="b" output={"__s^49i64" }  src="49i64" stream=0 }
  mul={ name="c" output={"rows" } input={"n_shapeInput" "__s^49i64" } stream=0  layers="" }
  copy={ name="d" output={"n" } input={"n_shapeInput" }  stream=0  speculate={ }}
"""


def small(
    *, batch: int | str = 4, weights: str = "float16", version: tuple[int, int, int, int] = (1, 7, 1, 116)
) -> bytes:
    """A cast, a convolution 3 → 16 (padded to 4) of 3×3 on 8×8, and a fused matrix product 16 → 10."""
    tensors = [
        tensor("x", "float32", batch, 3, 8, 8),
        tensor("c", weights, batch, 4, 8, 8),
        tensor("w", weights, 16, 4, 3, 3),
        tensor("r", "float16", batch, 16, 8, 8),
        tensor("fw", "float16", 16, 10),
        tensor("y", "float32", batch, 10),
        tensor("n", "int64", 1, host=True),
    ]
    statements = [
        '  signal={ name="s" stream=0 event=1 layers="" }',
        statement("function", "__myl_Cast", "x n", "c", "cast_x"),
        statement("corrltn", "conv", "c w", "r", "conv act"),
        statement("runtime_fusion", "__myl_FcAdd", "r fw", "y", "fc", "binary=0"),
    ]
    inner = [
        tensor("p", "float16", batch, 16),
        tensor("fw", "float16", 16, 10),
        tensor("q", "float16", batch, 10),
    ]
    fused = block("p fw", inner, [statement("fully_connected", "fc", "p fw", "q", "fc", PRODUCT)], version=4)
    sizes = FREE if isinstance(batch, str) else ""
    return plan(block("x", tensors, statements, sizes=sizes), fused, version=version)
