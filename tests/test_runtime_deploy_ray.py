"""Ray Serve's configuration, parsed back, and held against Ray's own schema where Ray is installed."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engineworks import runtime
from engineworks.runtime import BundleError
from engineworks.runtime.deploy_kserve import Scale
from engineworks.runtime.deploy_ray import IMPORT_PATH, ray_config
from engineworks.runtime.manifest import Batch
from engineworks.runtime.ray_app import build, opening_of

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
Make = Any
CHECK = """
import json, sys
from ray.serve.schema import ServeDeploySchema
ServeDeploySchema.model_validate(json.load(sys.stdin))
"""


def parsed(m: runtime.Manifest, path: str = "/models/four-fp16", **options: Any) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(ray_config(m, Path(path), **options)[0])
    return content


def schema_says(content: dict[str, Any]) -> str:
    """Ask Ray in a process of its own; the empty text where it takes the configuration."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed")
    command = [sys.executable, "-c", CHECK]
    done = subprocess.run(command, input=json.dumps(content), text=True, capture_output=True, check=False, timeout=60)
    return "" if done.returncode == 0 else done.stderr


def test_the_import_path_leads_to_the_application() -> None:
    assert f"{build.__module__}:{build.__name__}" == IMPORT_PATH


def test_it_is_sized_by_the_bundles_largest_batch(manifest: runtime.Manifest) -> None:
    (application,) = parsed(manifest)["applications"]
    (deployment,) = application["deployments"]
    assert application["import_path"] == IMPORT_PATH
    assert application["args"]["bundle"] == "/models/four-fp16"
    assert deployment["name"] == "four-fp16"
    assert deployment["autoscaling_config"] == {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 8}
    assert deployment["max_ongoing_requests"] >= 2 * 8


def test_each_replica_has_a_gpu_and_runs_nowhere_else(manifest: runtime.Manifest) -> None:
    (application,) = parsed(manifest)["applications"]
    assert application["deployments"][0]["ray_actor_options"]["num_gpus"] == 1
    assert application["args"]["device"] == "cuda"


def test_without_gpus_a_replica_takes_one_core_and_asks_ray_for_it(manifest: runtime.Manifest) -> None:
    (application,) = parsed(manifest, scale=Scale(0, 2, 3))["applications"]
    assert application["deployments"][0]["ray_actor_options"] == {"num_cpus": 1, "num_gpus": 0}
    assert (application["args"]["device"], application["args"]["threads"]) == ("cpu", 1)
    assert application["deployments"][0]["autoscaling_config"]["min_replicas"] == 2


def test_what_it_passes_on_is_what_the_application_takes(manifest: runtime.Manifest) -> None:
    arguments = parsed(manifest)["applications"][0]["args"]
    del arguments["bundle"]
    assert opening_of(arguments) == arguments


def test_it_listens_on_loopback_unless_it_is_told_and_then_that_is_said(manifest: runtime.Manifest) -> None:
    assert parsed(manifest)["http_options"]["host"] == "127.0.0.1"
    text, notes = ray_config(manifest, Path("/m"), host="0.0.0.0")
    assert yaml.safe_load(text)["http_options"]["host"] == "0.0.0.0"
    assert any("let only whom you trust reach it" in note for note in notes)


def test_a_relative_folder_becomes_whole_for_other_nodes(manifest: runtime.Manifest, tmp_path: Path) -> None:
    arguments = parsed(manifest, "here")["applications"][0]["args"]
    assert Path(arguments["bundle"]) == Path.cwd() / "here"


def test_a_fixed_batch_is_said_and_gathers_nothing(make_bundle: Make) -> None:
    inputs = (runtime.Tensor("image", "float32", (4, 3, 8, 8)),)
    m = runtime.open_bundle(make_bundle(inputs=inputs, batch=Batch(4, 4, 4))).manifest
    text, notes = ray_config(m, Path("/m"), scale=Scale(0, 1, 1))
    assert yaml.safe_load(text)["applications"][0]["deployments"][0]["max_ongoing_requests"] == 2
    assert any("one by one" in note for note in notes)


def test_several_gpus_for_one_replica_are_refused(manifest: runtime.Manifest) -> None:
    with pytest.raises(BundleError, match=r"one GPU or none, got 2\. Raise --replicas instead"):
        ray_config(manifest, Path("/m"), scale=Scale(2))


@pytest.mark.slow
def test_rays_own_schema_takes_it_and_not_one_with_a_wrong_field(manifest: runtime.Manifest) -> None:
    content = parsed(manifest, name="Four.FP16")
    assert schema_says(content) == ""
    content["applications"][0]["deployments"][0]["max_ongoing_requests"] = -1
    assert "max_ongoing_requests" in schema_says(content)
