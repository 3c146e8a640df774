"""Write what TensorRT's engine inspector gives, small enough to be counted by hand; no TensorRT is needed.

By NVIDIA's documents and published outputs: the Developer Guide's "Engine Inspector" (a convolution's keys), the
samples of TREx (descriptions of formats), TensorRT issues 4020 (``Location``, ``StreamId``, ``Metadata`` with its
separator) and 4397 (``kgen`` and ``gemm``, whose weights are not told), and "Migrating IEngineInspector Usage from
TensorRT 10.x to 11.x" (``I/O Tensors`` for ``Bindings``, ``Format/Datatype`` in two keys).
"""

import json
from typing import Any

HALF, SINGLE = "Channel major FP16 format where channel % 8 == 0", "Row major linear FP32"
INT8 = "Thirty-two wide channel vectorized row major Int8 format"
DATATYPES = {HALF: "Half", SINGLE: "Float", INT8: "Int8"}
GEMM = "sm80_xmma_gemm_f16f16_f16f16_f16_nn_n_tilesize32x32x64_stage6_warpsize2x2x1_tensor16x8x16"

Layer = dict[str, Any]


def tensor(name: str, words: str, *dims: int, place: str = "Device") -> Layer:
    return {"Name": name, "Location": place, "Dimensions": list(dims), "Format/Datatype": words}


def layer(name: str, kind: str, inputs: list[Layer], outputs: list[Layer], onnx: str = "", **more: Any) -> Layer:
    metadata = "\x1e".join(f"[ONNX Layer: {word}]" for word in onnx.split())
    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": inputs,
        "Outputs": outputs,
        **more,
        "StreamId": 0,
        "Metadata": metadata,
    }


def convolution(words: str, weights: str, batch: int, **more: Any) -> Layer:
    """3 → 16 channels, 3×3, 8×8 pixels, with a ReLU."""
    fields = {
        "ParameterType": "Convolution",
        "Kernel": [3, 3],
        "PaddingMode": "kEXPLICIT_ROUND_DOWN",
        "PrePadding": [1, 1],
        "PostPadding": [1, 1],
        "Stride": [1, 1],
        "Dilation": [1, 1],
        "OutMaps": 16,
        "Groups": 1,
        "Weights": {"Type": weights, "Count": 432},
        "Bias": {"Type": weights, "Count": 16},
        "HasDynamicFilter": 0,
        "Activation": "RELU",
        "TacticName": "sm80_xmma_fprop_implicit_gemm",
    }
    given, made = tensor("c", words, batch, 3, 8, 8), tensor("r", HALF, batch, 16, 8, 8)
    return layer("conv + act", "CaskConvolution", [given], [made], "conv act", **{**fields, **more})


def product(batch: int, *, words: str = HALF, **more: Any) -> Layer:
    """16 → 10, whose weights only the kernel's name tells of."""
    inputs, outputs = [tensor("m", words, batch, 16)], [tensor("y", HALF, batch, 10)]
    return layer("fc_myl0_3", "gemm", inputs, outputs, "fc", **{"TacticName": GEMM, **more})


def network(batch: int = 4, *, words: str = HALF, weights: str = "Half") -> list[Layer]:
    """What an engine of test_runtime_xray.graph() could be: a cast, a convolution, a mean, a matrix product."""
    return [
        layer("[trainStation1]", "TrainStation", [], []),
        layer("cast", "kgen", [tensor("x", SINGLE, batch, 3, 8, 8)], [tensor("c", words, batch, 3, 8, 8)], "cast_x"),
        convolution(words, weights, batch),
        layer("mean", "kgen", [tensor("r", HALF, batch, 16, 8, 8)], [tensor("m", HALF, batch, 16)]),
        product(batch),
    ]


def information(layers: list[Any], *, major: int = 10) -> str:
    """The whole JSON, as TensorRT 10 or 11 writes it."""
    if major == 10:
        return json.dumps({"Layers": layers, "Bindings": ["x", "y"]})
    split = json.loads(json.dumps(layers))
    for one in (tensor for layer in split for tensor in (*layer["Inputs"], *layer["Outputs"])):
        one["Format"] = one.pop("Format/Datatype")
        one["Datatype"] = DATATYPES.get(one["Format"], one["Format"])
    ends = [{"Name": "x", "IOMode": "Input", "DataType": "Float", "Dimensions": [-1, 3, 8, 8], "Location": "Device"}]
    return json.dumps({"Layers": split, "I/O Tensors": ends})


def free(batch: int | None) -> str:
    """What an engine with a free batch tells without a context, or of one whose batch is set."""
    return information(network(4 if batch is None else batch) if batch else _untold())


def _untold() -> list[Layer]:
    return [
        one
        | {
            key: [tensor(t["Name"], "N/A due to dynamic shapes", -1, *t["Dimensions"][1:]) for t in one[key]]
            for key in ("Inputs", "Outputs")
        }
        for one in network()
    ]
