"""The command ``serve-model``: bundles over the Open Inference Protocol v2, by HTTP and, where it is asked for, gRPC.

Every option may stand in the environment (``SERVE_MODEL_PORT=8001``) or in one TOML file (``port = 8001``); the command
line goes before the environment, and that before the file.
"""

import os
import tomllib
from pathlib import Path
from typing import Any

import click

from engineworks.runtime.command import DeviceType, leave, status_of
from engineworks.runtime.errors import BackendError, BundleError
from engineworks.runtime.serve_limits import MB, Limits
from engineworks.runtime.serve_model import Opening
from engineworks.runtime.serve_run import Settings, serve
from engineworks.runtime.trt_cache import cache_folder


def run() -> None:
    """Run the command and exit with its status."""
    leave(main)


def main(argv: list[str] | None = None) -> int:
    """Run ``serve-model`` with these arguments (default: the process's own); return its exit status.

    0 where every request under way was answered, 1 a bundle or an address that cannot be used, 2 wrong usage.
    """
    return status_of(_command, "serve-model", argv)


def _read_config(context: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is None:
        return
    try:
        content = tomllib.loads(Path(value).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise click.UsageError(f"--config {value}: cannot be read ({error}).") from error
    known = {parameter.name for parameter in context.command.params if parameter.name != "config"}
    names = {name.replace("-", "_"): setting for name, setting in content.items()}
    if strange := names.keys() - known:
        raise click.UsageError(f"--config {value}: knows no {', '.join(sorted(strange))}. Options stand in --help.")
    context.default_map = names


@click.command(
    context_settings={
        "help_option_names": ["-h", "--help"],
        "auto_envvar_prefix": "SERVE_MODEL",
        "show_default": True,
        "max_content_width": 110,
    }
)
@click.argument("bundles", metavar="BUNDLE…", nargs=-1)
@click.option(
    "--config", callback=_read_config, is_eager=True, expose_value=False, metavar="TOML", help="A file of options."
)
@click.option("--host", default="127.0.0.1", help="Address to listen on; the default is reached from this host alone.")
@click.option("--port", default=8000, type=click.IntRange(0, 65535), help="0 takes a free one and prints it.")
@click.option("--grpc-port", type=click.IntRange(0, 65535), help="Answer gRPC as well.")
@click.option("--repository", metavar="DIR", help="A folder of bundles: DIR/NAME or DIR/NAME/VERSION.")
@click.option("--allow-repository-control", is_flag=True, help="Let clients load and unload models by name.")
@click.option("--watch", is_flag=True, help="Take up bundles that change, with no request lost.")
@click.option("--watch-seconds", default=1.0, type=click.FloatRange(0.05), help="How often --watch looks.")
@click.option("--build-engines", is_flag=True, help="Compile missing engines for this GPU; ONNX Runtime serves until.")
@click.option("--engine-cache", metavar="DIR", help="Where those engines are kept; default: the user's cache folder.")
@click.option("--device", type=DeviceType(), default="auto", show_default=True, help="Where models run.")
@click.option("--backend", default="auto", type=click.Choice(["auto", "onnxruntime", "tensorrt", "rtx"]))
@click.option("--strict", is_flag=True, help="Refuse to fall back from a GPU or an engine.")
@click.option("--threads", default=0, type=click.IntRange(0), help="CPU threads of one run; 0: all cores.")
@click.option("--contexts", default=1, type=click.IntRange(1), help="Runs under way at once, for each model.")
@click.option("--max-batch", type=click.IntRange(1), help="Largest batch of a run, within the bundle's.")
@click.option("--max-queue", default=256, type=click.IntRange(1), help="Requests that may wait, for each model.")
@click.option("--max-body-mb", default=64, type=click.IntRange(1), help="Largest body, sent or inflated.")
@click.option(
    "--max-json-mb", default=4, type=click.IntRange(1), help="Most JSON of a request; binary data has no such limit."
)
@click.option("--max-memory-mb", default=512, type=click.IntRange(1), help="Bodies of all requests together.")
@click.option("--max-connections", default=1024, type=click.IntRange(1), help="Connections that may be open.")
@click.option("--max-pixels", default=50_000_000, type=click.IntRange(1), help="Largest picture for classify.")
@click.option("--head-seconds", default=10.0, type=click.FloatRange(0.05), help="For a request's head to arrive.")
@click.option("--body-seconds", default=30.0, type=click.FloatRange(0.05), help="For a body to arrive.")
@click.option(
    "--queue-seconds", default=30.0, type=click.FloatRange(0.001), help="That a request may wait for its run."
)
@click.option("--drain-seconds", default=0.0, type=click.FloatRange(0), help="After SIGTERM: not ready, but answering.")
@click.option(
    "--access-log", default="errors", type=click.Choice(["all", "errors", "off"]), help="JSON lines on stderr."
)
@click.option(
    "--token-file", metavar="FILE", help="Every client must send this file's bearer token; or SERVE_MODEL_TOKEN."
)
@click.option("--tls-cert", metavar="PEM", help="Answer HTTPS with this certificate.")
@click.option("--tls-key", metavar="PEM", help="The certificate's key.")
def _command(bundles: tuple[str, ...], **given: Any) -> int:
    """Serve BUNDLE… over the Open Inference Protocol v2.

    Each is a folder that export-model wrote, or NAME=FOLDER, or NAME:VERSION=FOLDER.
    """
    if not bundles and not given["repository"]:
        raise click.UsageError("expected a BUNDLE, or --repository DIR. Make one with export-model.")
    if bool(given["tls_cert"]) != bool(given["tls_key"]):
        raise click.UsageError("--tls-cert and --tls-key go together.")
    _check_building(given)
    return serve(_settings(bundles, given))


def _check_building(given: dict[str, Any]) -> None:
    """Refuse what contradicts ``--build-engines``: until an engine is there, ONNX Runtime answers."""
    if given["engine_cache"] and not given["build_engines"]:
        raise click.UsageError("--engine-cache: nothing is kept there without --build-engines.")
    against = {
        "--backend": given["backend"] != "auto",
        "--device cpu": given["device"] == "cpu",
        "--strict": given["strict"],
    }
    if given["build_engines"] and any(against.values()):
        named = next(name for name, contradicts in against.items() if contradicts)
        raise click.UsageError(f"--build-engines: {named} contradicts it. Leave one of them out.")


def _settings(bundles: tuple[str, ...], given: dict[str, Any]) -> Settings:
    opening = Opening(
        device=given["device"],
        backend=given["backend"],
        strict=given["strict"],
        threads=given["threads"],
        contexts=given["contexts"],
        max_batch=given["max_batch"],
        queue=given["max_queue"],
    )
    limits = Limits(
        body=given["max_body_mb"] * MB,
        json=given["max_json_mb"] * MB,
        memory=given["max_memory_mb"] * MB,
        pixels=given["max_pixels"],
        body_seconds=given["body_seconds"],
        wait_seconds=given["queue_seconds"],
    )
    if limits.memory < limits.body:
        raise click.UsageError("--max-memory-mb: expected at least --max-body-mb.")
    same = ("host", "port", "grpc_port", "watch", "watch_seconds", "max_connections", "head_seconds", "drain_seconds")
    return Settings(
        bundles=bundles,
        repository=given["repository"],
        control=given["allow_repository_control"],
        opening=opening,
        limits=limits,
        access_log=given["access_log"],
        token=_token(given["token_file"]),
        engines=_engine_folder(given["engine_cache"]) if given["build_engines"] else None,
        tls=(given["tls_cert"], given["tls_key"]) if given["tls_cert"] else None,
        **{name: given[name] for name in same},
    )


def _engine_folder(asked: str | None) -> Path:
    if asked:
        return Path(asked)
    folder = cache_folder()
    if folder is None:
        raise BackendError("--build-engines: this user has no cache folder. Pass --engine-cache DIR.")
    return folder / "engines"


def _token(file: str | None) -> str | None:
    if file is None:
        return os.environ.get("SERVE_MODEL_TOKEN") or None
    try:
        token = Path(file).read_text("utf-8").strip()
    except (OSError, ValueError) as error:
        raise BundleError(f"--token-file {file}: cannot be read ({error}).") from error
    if not token:
        raise BackendError(f"--token-file {file}: is empty. Write a token into it.")
    return token


if __name__ == "__main__":
    run()
