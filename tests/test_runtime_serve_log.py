"""The access log: lines arrive whole, and a stream that fails stops nothing."""

import io
import json

import pytest

pytest.importorskip("orjson")

from engineworks.runtime.serve_log import AccessLog


def test_lines_are_json_and_all_there_when_it_is_closed() -> None:
    stream = io.StringIO()
    log = AccessLog("all", stream)
    for number in range(500):
        log.write({"number": number})
    log.close()
    assert [json.loads(line)["number"] for line in stream.getvalue().splitlines()] == list(range(500))
    assert log.dropped == 0


def test_a_full_disk_drops_lines_and_counts_them() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    log = AccessLog("all", Full())
    log.write({})
    log.close()
    assert log.dropped == 1


def test_only_what_is_asked_for_is_wanted() -> None:
    found = {}
    for which in ("all", "errors", "off"):
        log = AccessLog(which, io.StringIO())
        found[which] = (log.wants(200), log.wants(404))
        log.close()
    assert found == {"all": (True, True), "errors": (False, True), "off": (False, False)}
