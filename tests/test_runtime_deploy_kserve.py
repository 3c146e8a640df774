"""KServe's manifests, parsed back: what serves, from where, with how much; held against KServe's schema."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from engineworks import runtime
from engineworks.runtime import BundleError
from engineworks.runtime.deploy_kserve import Scale, cluster_name, kserve_manifest

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")


def documents(m: runtime.Manifest, **options: Any) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(kserve_manifest(m, "s3://models/four", **options)[0]))


def faults(document: dict[str, Any]) -> list[str]:
    """Hold a document against the recorded schema of its kind; where, and what is wrong."""
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    kind = {
        ("serving.kserve.io/v1beta1", "InferenceService"): "V1beta1InferenceService",
        ("serving.kserve.io/v1alpha1", "ServingRuntime"): "V1alpha1ServingRuntime",
    }[document["apiVersion"], document["kind"]]
    recorded = json.loads(Path(__file__).with_name("snapshots").joinpath("kserve-0.21.json").read_text("utf-8"))
    schema = {"$ref": f"#/$defs/{kind}", "required": ["metadata", "spec"], "$defs": recorded["$defs"]}
    found = jsonschema.Draft202012Validator(schema).iter_errors(document)
    return [f"{'.'.join(map(str, one.absolute_path))}: {one.message}" for one in found]


def planted(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return the document with a value at a path; None takes out what stands there."""
    changed = copy.deepcopy(document)
    *way, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
    place: Any = changed
    for part in way:
        place = place[part]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return changed


@pytest.mark.parametrize("scale", [Scale(), Scale(0, 0, 1)])
@pytest.mark.parametrize("image", [None, "registry/engineworks:1"])
def test_kserves_own_schema_takes_every_document(manifest: runtime.Manifest, image: str | None, scale: Scale) -> None:
    for document in documents(manifest, image=image, scale=scale):
        assert faults(document) == []


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        (1, "spec.predictor.model.modelFormat", None),
        (1, "spec.predictor.model.storageURI", "s3://a"),
        (1, "spec.predictor.minReplicas", "1"),
        (1, "spec.predictor.model.modelFormat.name", 2),
        (1, "spec", None),
        (0, "spec.containers", None),
        (0, "spec.containers.0.name", None),
        (0, "spec.containers.0.readinesProbe", {}),
        (0, "spec.containers.0.ports.0.containerPort", "http"),
        (0, "spec.containers.0.readinessProbe.httpGet.port", 0),
        (0, "spec.containers.0.resources.requests.memory", "2 GB"),
        (0, "spec.containers.0.securityContext.runAsNonRoot", "yes"),
        (0, "spec.supportedModelFormats.0", "engineworks"),
        (0, "spec.multimodel", False),
    ],
)
def test_the_schema_refuses_a_fault_that_is_planted(
    manifest: runtime.Manifest, kind: int, path: str, value: Any
) -> None:
    document = documents(manifest, image="registry/engineworks:1")[kind]
    assert faults(planted(document, path, value)) != []


def test_without_an_image_triton_serves_the_repository(manifest: runtime.Manifest) -> None:
    (service,) = documents(manifest)
    model = service["spec"]["predictor"]["model"]
    assert (service["kind"], service["metadata"]["name"]) == ("InferenceService", "four-fp16")
    assert (model["runtime"], model["modelFormat"]["name"]) == ("kserve-tritonserver", "triton")
    assert model["storageUri"] == "s3://models/four"
    assert model["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_with_an_image_our_container_serves_the_bundle(manifest: runtime.Manifest) -> None:
    served, service = documents(manifest, image="registry/engineworks:1")
    (container,) = served["spec"]["containers"]
    assert (served["kind"], container["name"]) == ("ServingRuntime", "kserve-container")
    assert [*container["command"], *container["args"]][:2] == ["serve-model", "four-fp16=/mnt/models"]
    assert container["readinessProbe"]["httpGet"] == {"path": "/v2/health/ready", "port": 8080}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert service["spec"]["predictor"]["model"]["runtime"] == served["metadata"]["name"]


@pytest.mark.parametrize("image", [None, "a/b:1"])
def test_without_gpus_none_is_asked_for(manifest: runtime.Manifest, image: str | None) -> None:
    text, _ = kserve_manifest(manifest, "pvc://a/b", image=image, scale=Scale(0, 2, 3))
    assert "nvidia" not in text
    assert "minReplicas: 2\n    maxReplicas: 3\n" in text


def test_the_same_bundle_gives_the_same_text(manifest: runtime.Manifest) -> None:
    assert kserve_manifest(manifest, "s3://a") == kserve_manifest(manifest, "s3://a")


@pytest.mark.parametrize("name", ["four-fp16", "Four_FP16", "9lives", "--", "é", "x" * 300, "a." * 60])
def test_any_name_becomes_a_hosts_label(name: str) -> None:
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", cluster_name(name))


def test_another_name_in_the_cluster_is_said(manifest: runtime.Manifest) -> None:
    _, notes = kserve_manifest(manifest, "s3://a", name="Four.FP16")
    assert notes[0] == "in the cluster its name is four-fp16: 'Four.FP16' is no host name."


@pytest.mark.parametrize("storage", ["", "models", "s3:/a", "s3://a b", "/models"])
def test_what_is_no_uri_is_refused(manifest: runtime.Manifest, storage: str) -> None:
    with pytest.raises(BundleError, match="storage: expected a URI"):
        kserve_manifest(manifest, storage)


def test_what_is_no_image_is_refused(manifest: runtime.Manifest) -> None:
    with pytest.raises(BundleError, match="image: expected a name"):
        kserve_manifest(manifest, "s3://a", image="a b")
