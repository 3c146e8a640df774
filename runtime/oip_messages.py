"""The messages of the protocol's gRPC service, made from a table: nothing is generated, and no file needs a compiler.

The numbers are those of ``grpc_service.proto`` and ``model_config.proto`` (Open Inference Protocol v2, "GRPC", and the
extensions served here); names of nested messages and of map entries do not go over the wire, so all stand side by side.
The pool is our own: a client in the same process may register the same names.
"""

from functools import cache
from typing import Any

PACKAGE = "inference"
_KINDS = {
    "double": 1,
    "float": 2,
    "int64": 3,
    "uint64": 4,
    "int32": 5,
    "bool": 8,
    "string": 9,
    "bytes": 12,
    "uint32": 13,
}
_TYPES = ["INVALID", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"]
_TYPES += ["FP16", "FP32", "FP64", "STRING", "BF16"]

# message: field=number type, …   (*: repeated; a message whose name ends in | holds one of its fields at a time)
_TABLE = """
Empty:
Live: live=1 bool
Ready: ready=1 bool
Name: name=1 string, version=2 string
ServerMetadata: name=1 string, version=2 string, extensions=3 string*
TensorMetadata: name=1 string, datatype=2 string, shape=3 int64*
ModelMetadata: name=1 string, versions=2 string*, platform=3 string, inputs=4 TensorMetadata*, outputs=5 TensorMetadata*
Parameter|: bool_param=1 bool, int64_param=2 int64, string_param=3 string, double_param=4 double, uint64_param=5 uint64
Entry: key=1 string, value=2 Parameter
Contents: bool_contents=1 bool*, int_contents=2 int32*, int64_contents=3 int64*, uint_contents=4 uint32*
Contents: uint64_contents=5 uint64*, fp32_contents=6 float*, fp64_contents=7 double*, bytes_contents=8 bytes*
InputTensor: name=1 string, datatype=2 string, shape=3 int64*, parameters=4 Entry*, contents=5 Contents
OutputWanted: name=1 string, parameters=2 Entry*
InferRequest: model_name=1 string, model_version=2 string, id=3 string, parameters=4 Entry*, inputs=5 InputTensor*
InferRequest: outputs=6 OutputWanted*, raw_input_contents=7 bytes*
OutputTensor: name=1 string, datatype=2 string, shape=3 int64*
InferResponse: model_name=1 string, model_version=2 string, id=3 string, outputs=5 OutputTensor*
InferResponse: raw_output_contents=6 bytes*
StreamResponse: error_message=1 string, infer_response=2 InferResponse
ConfigInput: name=1 string, data_type=2 DataType, dims=4 int64*
ConfigOutput: name=1 string, data_type=2 DataType, dims=3 int64*
DynamicBatching: preferred_batch_size=1 int32*, max_queue_delay_microseconds=2 uint64
Config: name=1 string, platform=2 string, max_batch_size=4 int32, input=5 ConfigInput*, output=6 ConfigOutput*
Config: dynamic_batching=11 DynamicBatching, backend=17 string
ConfigResponse: config=1 Config
Duration: count=1 uint64, ns=2 uint64
InferStatistics: success=1 Duration, fail=2 Duration, queue=3 Duration, compute_input=4 Duration
InferStatistics: compute_infer=5 Duration, compute_output=6 Duration, cache_hit=7 Duration, cache_miss=8 Duration
BatchStatistics: batch_size=1 uint64, compute_input=2 Duration, compute_infer=3 Duration, compute_output=4 Duration
ModelStatistics: name=1 string, version=2 string, last_inference=3 uint64, inference_count=4 uint64
ModelStatistics: execution_count=5 uint64, inference_stats=6 InferStatistics, batch_stats=7 BatchStatistics*
Statistics: model_stats=1 ModelStatistics*
IndexRequest: repository_name=1 string, ready=2 bool
ModelIndex: name=1 string, version=2 string, state=3 string, reason=4 string
Index: models=1 ModelIndex*
Control: repository_name=1 string, model_name=2 string, parameters=3 Entry*
"""


@cache
def messages() -> dict[str, Any]:
    """Return the message classes by their names in the table."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="oip.proto", package=PACKAGE, syntax="proto3")
    file.enum_type.add(name="DataType", value=[{"name": f"TYPE_{one}", "number": at} for at, one in enumerate(_TYPES)])
    made: dict[str, Any] = {}
    for line in _TABLE.strip().splitlines():
        name, _, fields = line.partition(":")
        one_of = name.endswith("|")
        name = name.rstrip("|")
        if name not in made:
            made[name] = file.message_type.add(name=name)
            if one_of:
                made[name].oneof_decl.add(name="choice")
        for text in filter(None, fields.strip().split(", ")):
            _add_field(made[name], text, one_of)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in made}


def _add_field(message: Any, text: str, one_of: bool) -> None:
    label, _, kind = text.partition(" ")
    name, _, number = label.partition("=")
    plain = kind.rstrip("*")
    field = message.field.add(name=name, number=int(number), label=3 if kind.endswith("*") else 1)
    field.type = _KINDS.get(plain, 14 if plain == "DataType" else 11)
    if plain not in _KINDS:
        field.type_name = f".{PACKAGE}.{plain}"
    if one_of:
        field.oneof_index = 0
