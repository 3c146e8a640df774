"""A bundle as KServe's manifests: an InferenceService on Triton, or on our own container with its ServingRuntime.

The fields are those of ``serving.kserve.io``: InferenceService v1beta1, ServingRuntime v1alpha1.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engineworks.runtime import plain_yaml
from engineworks.runtime.errors import BundleError
from engineworks.runtime.manifest import Manifest

_PORT = 8080  # where KServe looks when a container names no other
_LONGEST = 40  # KServe makes host names of it: NAME-predictor-NAMESPACE, 63 signs at most
_GIB = 1 << 30


@dataclass(frozen=True)
class Scale:
    """How much a cluster gives: GPUs for each replica, and the fewest and most replicas."""

    gpus: int = 1
    least: int = 1
    most: int = 4


ONE_GPU = Scale()


def kserve_manifest(
    m: Manifest, storage: str, *, image: str | None = None, name: str | None = None, scale: Scale = ONE_GPU
) -> tuple[str, tuple[str, ...]]:
    """Write the manifest that ``kubectl apply -f`` takes.

    Args:
        m: the bundle's manifest.
        storage: where the cluster finds the files (``s3://``, ``gs://``, ``pvc://``): the bundle for our own
            container, the repository that ``--triton`` wrote for Triton.
        image: our runtime image; None for KServe's own Triton runtime.
        name: the service's name; None for the bundle's, made fit.
        scale: GPUs and replicas.

    Returns:
        The YAML text, and what its reader must know.

    Raises:
        BundleError: ``storage`` is no URI, or ``image`` no image's name.
    """
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*://\S+", storage):
        raise BundleError(f"storage: expected a URI such as s3://bucket/folder, got {storage!r}.")
    if image is not None and not re.fullmatch(r"[\w][\w./:@-]*", image):
        raise BundleError(f"image: expected a name such as registry/engineworks:1, got {image!r}.")
    called = name or m.name
    service = cluster_name(called)
    notes = [] if service == called else [f"in the cluster its name is {service}: {called!r} is no host name."]
    if image is None:
        notes.append(f"{storage} must hold the repository that --triton writes, with the folder {called} in it.")
        documents = [_service(service, _on_triton(m, storage, scale), scale)]
    else:
        notes.append(f"{storage} must hold the bundle itself; its protocol's name for the model is {m.name}.")
        documents = [_runtime(m, service, image, scale), _service(service, _on_ours(service, storage), scale)]
    return plain_yaml.dump(documents, f"{m.summary}\nWritten by deploy-model."), tuple(notes)


def cluster_name(name: str) -> str:
    """Make a host's label of a name: small letters, digits and '-', a letter first, 40 signs at most (RFC 1035)."""
    label = re.sub(r"[^a-z0-9]+", "-", name.lower())[:_LONGEST].strip("-")
    return label if label[:1].isalpha() else f"m-{label}"[:_LONGEST].strip("-")


def _service(name: str, model: Mapping[str, Any], scale: Scale) -> dict[str, Any]:
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name},
        "spec": {"predictor": {"minReplicas": scale.least, "maxReplicas": scale.most, "model": dict(model)}},
    }


def _on_triton(m: Manifest, storage: str, scale: Scale) -> dict[str, Any]:
    return {
        "modelFormat": {"name": "triton", "version": "2"},
        "runtime": "kserve-tritonserver",
        "protocolVersion": "v2",
        "storageUri": storage,
        "resources": _resources(m, scale),
    }


def _on_ours(name: str, storage: str) -> dict[str, Any]:
    return {
        "modelFormat": {"name": "engineworks", "version": "1"},
        "runtime": f"{name}-engineworks",
        "protocolVersion": "v2",
        "storageUri": storage,
    }


def _runtime(m: Manifest, name: str, image: str, scale: Scale) -> dict[str, Any]:
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": {"name": f"{name}-engineworks"},
        "spec": {
            "supportedModelFormats": [{"name": "engineworks", "version": "1"}],
            "protocolVersions": ["v2"],
            "multiModel": False,
            "containers": [_container(m, image, scale)],
            "volumes": [{"name": "scratch", "emptyDir": {}}],
        },
    }


def _container(m: Manifest, image: str, scale: Scale) -> dict[str, Any]:
    return {
        "name": "kserve-container",
        "image": image,
        "command": ["serve-model"],
        "args": [f"{m.name}=/mnt/models", "--host", "0.0.0.0", "--port", str(_PORT)],
        "ports": [{"containerPort": _PORT, "protocol": "TCP"}],
        "readinessProbe": {"httpGet": {"path": "/v2/health/ready", "port": _PORT}, "periodSeconds": 5},
        "livenessProbe": {
            "httpGet": {"path": "/v2/health/live", "port": _PORT},
            "periodSeconds": 10,
            "failureThreshold": 6,
        },
        "resources": _resources(m, scale),
        "securityContext": {
            "runAsNonRoot": True,
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "scratch", "mountPath": "/tmp"}],
    }


def _resources(m: Manifest, scale: Scale) -> dict[str, Any]:
    """Ask for memory by what the bundle's files weigh: each may lie there as bytes, parsed, and packed for kernels."""
    gibibytes = 1 + -(-3 * sum(file.bytes for file in m.files.values()) // _GIB)
    wanted = {"cpu": "1", "memory": f"{gibibytes}Gi"}
    limits = {"memory": f"{2 * gibibytes}Gi"}
    return {"requests": wanted, "limits": limits | ({"nvidia.com/gpu": str(scale.gpus)} if scale.gpus else {})}
