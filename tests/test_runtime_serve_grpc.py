"""gRPC beside HTTP: the same models and refusals; by the messages' own table, and by tritonclient where it is."""

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("grpc")
pytest.importorskip("google.protobuf")

from engineworks import runtime
from engineworks.runtime.oip_messages import messages

GREEN = np.zeros((1, 3, 8, 8), np.float32)
GREEN[:, 1] = 1
KINDS = {"ModelInfer": ("InferRequest", "InferResponse"), "ModelMetadata": ("Name", "ModelMetadata")}
KINDS |= {"ModelConfig": ("Name", "ConfigResponse"), "ServerReady": ("Empty", "Ready"), "ServerLive": ("Empty", "Live")}
KINDS |= {"ModelStatistics": ("Name", "Statistics"), "RepositoryIndex": ("IndexRequest", "Index")}
KINDS |= {"RepositoryModelUnload": ("Control", "Empty"), "ModelReady": ("Name", "Ready")}
Call = Callable[..., Any]


@pytest.fixture
def call(start: Callable[..., Any], served_bundle: Path) -> Iterator[Call]:
    """Make a call by its name, with fields of its request; ``raw`` sends bytes as they are."""
    import grpc

    server = start(served_bundle, "--grpc-port", "0", "--max-body-mb", "1")
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port()}") as channel:

        def make(name: str, raw: bytes | None = None, /, **fields: Any) -> Any:
            asked, answered = (messages()[kind] for kind in KINDS[name])
            data = asked(**fields).SerializeToString() if raw is None else raw
            answer = channel.unary_unary(f"/inference.GRPCInferenceService/{name}")(data, timeout=10)
            return answered.FromString(answer)

        yield make


def refused(call: Call, name: str, raw: bytes | None = None, /, **fields: Any) -> str:
    import grpc

    with pytest.raises(grpc.RpcError) as error:
        call(name, raw, **fields)
    return str(error.value.code().name)


def test_every_call_answers_and_refuses_as_http_does(call: Call, served_bundle: Path) -> None:
    assert call("ServerLive").live and call("ServerReady").ready and call("ModelReady", name="four-fp16").ready
    assert list(call("ModelMetadata", name="four-fp16").inputs[0].shape) == [-1, 3, 8, 8]
    config = call("ModelConfig", name="four-fp16").config
    assert (config.max_batch_size, config.input[0].data_type, list(config.input[0].dims)) == (8, 11, [3, 8, 8])
    assert call("RepositoryIndex").models[0].state == "READY"
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, 3, 8, 8]}
    with runtime.load(served_bundle) as session:
        right = session.infer(GREEN)
    answer = call("ModelInfer", model_name="four-fp16", id="q", inputs=[tensor], raw_input_contents=[GREEN.tobytes()])
    assert answer.raw_output_contents[0] == right.tobytes() and answer.id == "q"
    numbers = tensor | {"contents": {"fp32_contents": GREEN.reshape(-1).tolist()}}
    wanted = {"name": "scores", "parameters": [{"key": "classification", "value": {"int64_param": 1}}]}
    answer = call("ModelInfer", model_name="four-fp16", inputs=[numbers], outputs=[wanted])
    assert answer.raw_output_contents[0].endswith(b":1:green")
    assert call("ModelStatistics").model_stats[0].inference_count == 2
    bad = {"model_name": "four-fp16", "raw_input_contents": [b"x"]}
    assert refused(call, "ModelInfer", inputs=[tensor], **bad) == "INVALID_ARGUMENT"
    assert refused(call, "ModelInfer", inputs=[tensor | {"shape": [2**62, 3, 8, 8]}], **bad) == "INVALID_ARGUMENT"
    assert refused(call, "ModelInfer", inputs=[tensor, tensor], **bad) == "INVALID_ARGUMENT"
    assert refused(call, "ModelInfer", b"\xff" * 50) == "INVALID_ARGUMENT"
    assert refused(call, "ModelInfer", bytes(2 << 20)) == "RESOURCE_EXHAUSTED"
    assert refused(call, "ModelInfer", model_name="other") == "NOT_FOUND"
    assert refused(call, "RepositoryModelUnload", model_name="four-fp16") == "PERMISSION_DENIED"


def of_tritonclient(part: str) -> Any:
    """Import a part of tritonclient, which is installed without what it needs to run: protobuf 7 is not among that."""
    try:
        return importlib.import_module(f"tritonclient.{part}")
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"tritonclient.{part} does not import: {error}")


def test_the_table_is_what_tritonclient_speaks() -> None:
    service = of_tritonclient("grpc.service_pb2")
    pairs = {
        "InferRequest": "ModelInferRequest",
        "InferResponse": "ModelInferResponse",
        "ModelMetadata": "ModelMetadataResponse",
        "ModelStatistics": "ModelStatistics",
        "InferStatistics": "InferStatistics",
        "BatchStatistics": "InferBatchStatistics",
        "Contents": "InferTensorContents",
        "Parameter": "InferParameter",
        "Control": "RepositoryModelLoadRequest",
        "IndexRequest": "RepositoryIndexRequest",
        "StreamResponse": "ModelStreamInferResponse",
    }
    for ours, theirs in pairs.items():
        known = {field.name: field.number for field in getattr(service, theirs).DESCRIPTOR.fields}
        for field in messages()[ours].DESCRIPTOR.fields:
            assert known[field.name] == field.number, f"{ours}.{field.name}"


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_tritonclient_takes_the_server_for_one_of_its_own(
    start: Callable[..., Any], served_bundle: Path, kind: str
) -> None:
    client_of = of_tritonclient(kind)
    server = start(f"four={served_bundle}", "--grpc-port", "0", "--allow-repository-control")
    port = server.port if kind == "http" else server.grpc_port()
    client = client_of.InferenceServerClient(f"127.0.0.1:{port}")
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("four")
    assert client.get_server_metadata() and client.get_model_metadata("four") and client.get_model_config("four")
    asked = client_of.InferInput("image", [1, 3, 8, 8], "FP32")
    asked.set_data_from_numpy(GREEN)
    outputs = [client_of.InferRequestedOutput("scores", class_count=2)]
    assert client.infer("four", [asked]).as_numpy("scores").shape == (1, 4)
    assert b":1:green" in client.infer("four", [asked], outputs=outputs).as_numpy("scores")[0, 0]
    assert "four" in json.dumps(str(client.get_inference_statistics()))
    client.unload_model("four")
    assert not client.is_model_ready("four")
    client.load_model("four")
    assert client.is_model_ready("four") and client.get_model_repository_index() is not None
    client.close()
