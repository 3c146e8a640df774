"""The answer: as JSON, as bytes, and as classes, best first as the network means it."""

import json
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("orjson")

from engineworks import runtime
from engineworks.runtime.oip_errors import Refusal
from engineworks.runtime.oip_request import Wanted
from engineworks.runtime.oip_response import byte_strings, classes, write_response

SCORES = np.array([[0.5, 2.0, -1.0, 2.0]], np.float32)


def test_json_and_bytes_hold_the_same_numbers(manifest: runtime.Manifest) -> None:
    plain, nothing = write_response("m", "1", "", {"scores": SCORES}, [Wanted("scores", False)], manifest)
    assert nothing is None and json.loads(plain)["outputs"][0]["data"] == SCORES[0].tolist()
    body, length = write_response("m", "1", "q", {"scores": SCORES}, [Wanted("scores", True)], manifest)
    assert length is not None
    head = json.loads(body[:length])
    assert (head["id"], head["model_name"], head["model_version"]) == ("q", "m", "1")
    assert head["outputs"][0]["parameters"] == {"binary_data_size": 16} and body[length:] == SCORES.tobytes()


def test_classes_are_score_index_label_best_first_and_equal_ones_in_order(manifest: runtime.Manifest) -> None:
    assert classes("scores", SCORES, 3, manifest) == [["2.000000:1:green", "2.000000:3:dark", "0.500000:0:red"]]
    nearest = replace(manifest, scores="distances", labels=("a",))
    assert classes("scores", SCORES, 9, nearest)[0][:2] == ["-1.000000:2", "0.500000:0:a"]


def test_classes_as_bytes_have_their_lengths_before_them(manifest: runtime.Manifest) -> None:
    body, length = write_response("m", "1", "", {"scores": SCORES}, [Wanted("scores", True, 1)], manifest)
    assert body[length:] == byte_strings(["2.000000:1:green"]) == b"\x10\0\0\x002.000000:1:green"
    assert json.loads(body[:length])["outputs"][0]["datatype"] == "BYTES"


def test_what_json_cannot_hold_is_refused_and_bytes_hold_it(manifest: runtime.Manifest) -> None:
    broken = {"scores": np.array([[np.nan, 1, 2, np.inf]], np.float32)}
    with pytest.raises(Refusal, match="Ask for it as binary data"):
        write_response("m", "1", "", broken, [Wanted("scores", False)], manifest)
    with pytest.raises(Refusal, match="no classes"):
        classes("scores", broken["scores"], 1, manifest)
    assert write_response("m", "1", "", broken, [Wanted("scores", True)], manifest)[0].endswith(
        broken["scores"].tobytes()
    )
    with pytest.raises(Refusal, match=r"needs scores \(N, K\)"):
        classes("scores", SCORES[0], 1, manifest)
