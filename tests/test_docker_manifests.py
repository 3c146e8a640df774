"""compose.yaml, kubernetes.yaml and the operator's README, held against the server that they run."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from engineworks.runtime import serve, serve_run
from engineworks.runtime.serve_routes import OPEN

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
FOLDER = Path(__file__).resolve().parent.parent / "docker"
README = (FOLDER / "README.md").read_text("utf-8")
OPTIONS = {name for parameter in serve._command.params for name in parameter.opts if name.startswith("--")}


@pytest.fixture(scope="module")
def service() -> dict[str, Any]:
    content = yaml.safe_load((FOLDER / "compose.yaml").read_text("utf-8"))
    return dict(content["services"]["server"])


@pytest.fixture(scope="module")
def cluster() -> dict[str, dict[str, Any]]:
    documents = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text("utf-8"))
    return {document["kind"]: document for document in documents}


@pytest.fixture(scope="module")
def pod(cluster: dict[str, Any]) -> dict[str, Any]:
    return dict(cluster["Deployment"]["spec"]["template"]["spec"])


@pytest.fixture(scope="module")
def container(pod: dict[str, Any]) -> dict[str, Any]:
    (only,) = pod["containers"]
    return dict(only)


def parsed(arguments: list[str]) -> dict[str, Any]:
    """What ``serve-model`` understands by a command line."""
    return dict(serve._command.make_context("serve-model", list(arguments)).params)


def seconds(text: str) -> int:
    assert re.fullmatch(r"\d+s", text)
    return int(text[:-1])


# --- both


def test_serve_model_takes_the_arguments(service: dict[str, Any], container: dict[str, Any]) -> None:
    for arguments in (service["command"], container["args"]):
        assert (parsed(arguments)["repository"], parsed(arguments)["watch"]) == ("/models", True)


def test_the_time_to_stop_is_enough_for_the_drain_and_what_is_under_way(
    service: dict[str, Any], container: dict[str, Any], pod: dict[str, Any]
) -> None:
    for arguments, given in (
        (service["command"], seconds(service["stop_grace_period"])),
        (container["args"], pod["terminationGracePeriodSeconds"]),
    ):
        assert given >= parsed(arguments)["drain_seconds"] + serve_run._FINISH + 5


# --- compose


def test_composes_port_is_this_hosts_alone(service: dict[str, Any]) -> None:
    assert service["ports"] == ["127.0.0.1:8000:8000"]
    assert service["gpus"] == "all"


def test_compose_gives_no_more_rights_than_serving_takes(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "./models:/models:ro" in service["volumes"]
    assert not {"privileged", "network_mode", "pid", "ipc", "devices", "user"} & service.keys()


def test_composes_health_check_is_the_images(service: dict[str, Any]) -> None:
    line = re.search(r"^HEALTHCHECK .*\n\s*CMD (\[.*\])$", (FOLDER / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    assert line
    assert service["healthcheck"]["test"] == ["CMD", *json.loads(line[1])]


def test_compose_builds_the_file_beside_it(service: dict[str, Any]) -> None:
    root = FOLDER / service["build"]["context"]
    assert (root / service["build"]["dockerfile"]).samefile(FOLDER / "Dockerfile")
    text = (FOLDER / "Dockerfile").read_text("utf-8")
    assert f"AS {service['build']['target']}\n" in text
    assert all(f"ARG {name}" in text for name in service["build"]["args"])


# --- Kubernetes


def test_the_probes_ask_addresses_that_need_no_token(container: dict[str, Any]) -> None:
    paths = {kind: container[kind]["httpGet"]["path"] for kind in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert paths == {
        "startupProbe": "/v2/health/ready",
        "readinessProbe": "/v2/health/ready",
        "livenessProbe": "/v2/health/live",
    }
    assert set(paths.values()) <= OPEN
    (port,) = container["ports"]
    assert {container[kind]["httpGet"]["port"] for kind in paths} == {port["name"]}
    assert f"SERVE_MODEL_PORT={port['containerPort']} " in (FOLDER / "Dockerfile").read_text("utf-8")


def test_a_replica_that_drains_is_seen_before_it_stops_answering(container: dict[str, Any]) -> None:
    probe = container["readinessProbe"]
    seen = probe["periodSeconds"] * probe["failureThreshold"]
    assert parsed(container["args"])["drain_seconds"] > seen


def test_an_update_takes_no_replica_away_first(cluster: dict[str, Any]) -> None:
    deployment = cluster["Deployment"]["spec"]
    assert deployment["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert cluster["PodDisruptionBudget"]["spec"]["minAvailable"] < deployment["replicas"]


def test_every_selector_finds_the_pods(cluster: dict[str, Any]) -> None:
    labels = cluster["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert cluster["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert cluster["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert cluster["Service"]["spec"]["selector"] == labels


def test_the_pod_has_the_images_user_and_no_more_rights(pod: dict[str, Any], container: dict[str, Any]) -> None:
    user = pod["securityContext"]
    assert f"\nUSER {user['runAsUser']}:{user['runAsGroup']}\n" in (FOLDER / "Dockerfile").read_text("utf-8")
    assert user["runAsNonRoot"] is True and user["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False


def test_a_replica_has_one_gpu_and_all_its_mounts_exist(pod: dict[str, Any], container: dict[str, Any]) -> None:
    resources = container["resources"]
    assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"] == 1
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounted) == {volume["name"] for volume in pod["volumes"]}
    assert set(mounted.values()) == {"/models", "/cache", "/tmp"}


# --- the operator's README


def test_every_metric_that_the_readme_names_exists() -> None:
    pytest.importorskip("prometheus_client")
    from prometheus_client import generate_latest

    from engineworks.runtime.serve_limits import Budget
    from engineworks.runtime.serve_log import AccessLog
    from engineworks.runtime.serve_metrics import Metrics

    metrics = Metrics()
    models: Any = type("Models", (), {"all": lambda _: iter(())})()
    metrics.watch(models, Budget(1), AccessLog("off"))
    kinds = re.findall(r"^# TYPE (\S+) \S+$", generate_latest(metrics.registry).decode(), re.MULTILINE)
    there = {kind for kind in kinds if not kind.endswith("_created")}
    assert set(re.findall(r"`(engineworks_[a-z_]+)`", README)) == there - {"engineworks_rows_total"}


def test_every_option_and_variable_that_the_readme_names_exists() -> None:
    ours = set(re.findall(r"(?<![\w-])--(?:watch|drain|max|token|tls|repository|build-eng|engine)[a-z-]*", README))
    assert ours and ours <= OPTIONS
    variables = set(re.findall(r"SERVE_MODEL_([A-Z_]+)", README))
    assert {f"--{name.lower().replace('_', '-')}" for name in variables} <= OPTIONS


def test_every_address_that_the_readme_names_is_answered(server: Any) -> None:
    for path in set(re.findall(r"`(/(?:v2/|status|metrics)[\w/.]*)`", README)):
        assert server.ask("GET", path)[0] == 200, path
