"""The published document and the server: what one names, the other answers."""

from typing import Any

from engineworks.runtime.serve_openapi import openapi


def test_every_operation_says_what_every_failure_means() -> None:
    for path, item in openapi()["paths"].items():
        for method in item.keys() - {"parameters"}:
            assert {"200", "400", "404", "503"} <= item[method]["responses"].keys(), path


def test_every_address_of_the_document_is_answered(server: Any) -> None:
    for path, item in server.json("GET", "/openapi.json")[1]["paths"].items():
        there = path.replace("{model}", "four-fp16").replace("{version}", "1")
        for method in item.keys() - {"parameters"}:
            status, _, _ = server.ask(method.upper(), there, b"{}" if method == "post" else None)
            assert status in {200, 400, 403}, f"{method} {there}"
        assert server.ask("PATCH", there)[0] == 405
