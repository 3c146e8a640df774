"""Record the schema of KServe's manifests, as far as ours go, from the classes of its Python SDK.

    pip download --no-deps kserve 'kubernetes<32'; unzip each into FOLDER
    python tests/snapshots/make_kserve_snapshot.py FOLDER > tests/snapshots/kserve-0.21.json

KServe makes those classes of the same Go types as its CRDs, and Kubernetes likewise. Only names, types and what must
be there are recorded, read from the source without running it. Types that no manifest of ours holds stay open.
"""

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

FOLLOWED = (
    "V1beta1InferenceService", "V1beta1InferenceServiceSpec", "V1beta1PredictorSpec", "V1beta1ModelSpec",
    "V1beta1ModelFormat", "V1alpha1ServingRuntime", "V1alpha1ServingRuntimeSpec", "V1alpha1SupportedModelFormat",
    "V1ObjectMeta", "V1Container", "V1ContainerPort", "V1EnvVar", "V1Probe", "V1HTTPGetAction",
    "V1ResourceRequirements",
    "V1SecurityContext", "V1Capabilities", "V1Volume", "V1VolumeMount", "V1EmptyDirVolumeSource",
)  # fmt: skip
PLAIN = {"str": "string", "int": "integer", "bool": "boolean", "float": "number"}
QUANTITY = {  # Kubernetes, API reference, "Quantity": a decimal number with a suffix
    "anyOf": [
        {"type": "number"},
        {
            "type": "string",
            "pattern": r"^[+-]?([0-9]+|[0-9]+\.[0-9]*|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$",
        },
    ]
}
PORT = {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 65535}, {"type": "string"}]}


def main(folder: Path) -> None:
    """Print the schema."""
    sources = [*folder.glob("kserve/models/*.py"), *folder.glob("kubernetes/client/models/*.py")]
    found = dict[str, dict[str, Any]]()
    for source in sources:
        text = source.read_text("utf-8")
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef) and node.name in FOLLOWED:
                found.setdefault(node.name, _schema(node, text))
    if missing := set(FOLLOWED) - set(found):
        raise SystemExit(f"not found: {', '.join(sorted(missing))}")
    versions = sorted(path.name.removesuffix(".dist-info") for path in folder.glob("*.dist-info"))
    print(f'{{"from": {json.dumps(versions)}, "$defs": {{')
    print(",\n".join(f"{json.dumps(name)}: {json.dumps(found[name], sort_keys=True)}" for name in sorted(found)))
    print("}}")


def _schema(node: ast.ClassDef, text: str) -> dict[str, Any]:
    tables = {
        target.id: ast.literal_eval(one.value)
        for one in node.body
        if isinstance(one, ast.Assign)
        for target in one.targets
        if isinstance(target, ast.Name) and target.id in {"openapi_types", "attribute_map"}
    }
    names: dict[str, str] = tables["attribute_map"]
    required = set(re.findall(r"Invalid value for `(\w+)`, must not be `None`", text))
    properties = {names[key]: _type(kind) for key, kind in tables["openapi_types"].items()}
    if node.name == "V1HTTPGetAction":
        properties["port"] = PORT
    if node.name == "V1ResourceRequirements":
        properties |= {name: {"type": "object", "additionalProperties": QUANTITY} for name in ("limits", "requests")}
    schema: dict[str, Any] = {"type": "object", "additionalProperties": False, "properties": properties}
    return schema | {"required": sorted(names[key] for key in required)}


def _type(kind: str) -> dict[str, Any]:
    if kind in PLAIN:
        return {"type": PLAIN[kind]}
    if (inner := re.fullmatch(r"list\[(.+)\]", kind)) is not None:
        return {"type": "array", "items": _type(inner[1])}
    if (inner := re.fullmatch(r"dict\(str, (.+)\)", kind)) is not None:
        return {"type": "object", "additionalProperties": _type(inner[1])}
    if kind in {"ResourceQuantity", "V1Quantity"}:
        return QUANTITY
    return {"$ref": f"#/$defs/{kind}"} if kind in FOLLOWED else {}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
