"""The report of a bundle: one page that holds by itself, says what the manifest says, and can be looked at."""

import html.parser
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engineworks.export.pipeline import export_model
from engineworks.export.recipe import Recipe
from engineworks.export.report import report
from engineworks.export.report_plots import histogram_plot, layers_plot
from engineworks.runtime.bundle import Bundle
from engineworks.runtime.manifest import Batch

DIGITS = str(Path(__file__).parents[1] / "examples" / "calibration.py") + ":digits"
_VOID = {"meta", "img", "br", "link", "line", "rect", "polyline"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    recipe = Recipe(
        "lenet5", precision="int8", calib_data=DIGITS, calib_images=16, quality="fast", engine="none", layers=True,
        batch=Batch(1, 2, 8),
    )  # fmt: skip
    return export_model(recipe, tmp_path_factory.mktemp("report") / "out", use_cache=False)


@pytest.fixture(scope="module")
def page(bundle: Bundle) -> str:
    return bundle.read("report.html").decode()


class Strict(html.parser.HTMLParser):
    """Refuses elements that are not closed in order, and keeps texts and what is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.loads += [value for key, value in attrs if key in {"src", "href", "action", "data"}]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.loads += [value for key, value in attrs if key in {"src", "href"}]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def parsed(page: str) -> Strict:
    parser = Strict()
    parser.feed(page)
    parser.close()
    assert not parser.open
    return parser


def test_it_is_one_page_that_loads_nothing_and_runs_nothing(page: str) -> None:
    found = parsed(page)
    assert found.loads
    assert all(source.startswith("data:image/") for source in found.loads)
    assert "<script" not in page and "http:" not in page and "https:" not in re.sub(r"data:[^\"]*", "", page)
    assert 'name="viewport"' in page
    assert len(page) < 300_000


def test_it_shows_every_comparison_of_the_manifest(bundle: Bundle, page: str) -> None:
    texts = parsed(page).texts
    for rung in bundle.manifest.parity:
        assert rung.candidate in texts
        assert f"{rung.required_db:.1f} dB" in texts
        assert rung.sqnr_db is None or f"{rung.sqnr_db:.1f} dB" in texts
    for title in ("The ladder", "Layer by layer", "Precision", "INT8", "Samples", "Latency", "Provenance"):
        assert title in texts


def test_each_weighted_layer_stands_there_with_the_type_that_it_computes_in(bundle: Bundle, page: str) -> None:
    table = page.split("weighted layers</summary>")[1].split("</details>", maxsplit=1)[0]
    for kind, count in bundle.manifest.precision.realised.items():
        assert table.count(f"<td>{kind}</td>") == count
    assert "<td>c5</td><td><code>node_c5</code></td>" in table


def test_a_histogram_stands_for_each_quantised_tensor_with_its_threshold(bundle: Bundle, page: str) -> None:
    kept = json.loads(bundle.read("calibration.json"))
    quantised = {d["tensor"] for d in kept["decisions"] if d["quantised"]} & set(kept["tensors"])
    assert page.count('aria-label="histogram') == len(quantised) > 0
    for name in quantised:
        tensor = kept["tensors"][name]
        assert f"<code>{name}</code> ends at {127 * tensor['candidates'][kept['chosen']]:.3g}" in page
        assert sum(tensor["counts"]) > 0


def test_the_same_bundle_gives_the_same_page(bundle: Bundle, page: str) -> None:
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    again = report(bundle.manifest, files), report(replace(bundle.manifest, created="another day"), files)
    assert again[0] == again[1]


def test_what_users_wrote_is_text_and_never_markup(bundle: Bundle) -> None:
    evil = "<script>alert(1)</script>$body & co"
    manifest = replace(
        bundle.manifest, name=evil, notes=(evil,), labels=(evil,) * 10, tools={evil: evil}, recipe={evil: evil}
    )
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    with np.load(bundle.path / "reference.npz", allow_pickle=False) as stored:
        answers = stored["output:output"]
    page = report(manifest, files, [answers]).decode()
    found = parsed(page)
    assert "<script" not in page
    assert evil in "".join(found.texts)


def test_samples_show_the_original_s_classes_and_mark_the_graph_s_others(bundle: Bundle) -> None:
    files = {"reference.npz": bundle.read("reference.npz")}
    with np.load(bundle.path / "reference.npz", allow_pickle=False) as stored:
        right = stored["output:output"]
    same, other = report(bundle.manifest, files, [right]), report(bundle.manifest, files, [-right])
    assert b'class="warn">' not in same.split(b"<h2>Samples")[1]
    assert b'class="warn">' in other.split(b"<h2>Samples")[1]
    assert same.count(b"<figure>") == len(right)


def test_untrained_weights_are_shouted(bundle: Bundle) -> None:
    weights = replace(bundle.manifest.weights, trained=False)
    assert b"UNTRAINED" in report(replace(bundle.manifest, weights=weights), {})
    assert b"UNTRAINED" not in report(bundle.manifest, {})


def test_the_threshold_is_drawn_where_it_is() -> None:
    drawn = histogram_plot([4, 0, 2, 1], 8.0, 4.0)
    assert drawn.count('class="bar"') == 3
    (cut,) = re.findall(r'class="cut" x1="([\d.]+)"', drawn)
    assert float(cut) == 110  # of 220 for 8
    assert histogram_plot([], 0.0, 0.0).startswith("<svg")


def test_equal_and_endless_figures_have_a_place_in_the_plot() -> None:
    layers: list[dict[str, Any]] = [
        {"module": "a", "value": "v", "db": None, "alone_db": -5.0},
        {"module": "", "value": "w", "db": 40.0, "alone_db": None},
    ]
    drawn = layers_plot(layers)
    assert drawn.count("<circle") == 2 and "equal" in drawn
    assert all(0 <= float(y) <= 240 for y in re.findall(r'cy="([-\d.]+)"', drawn))
    assert layers_plot(layers[:1])


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
@pytest.mark.parametrize("width", [500, 1200], ids=["phone", "desk"])  # headless Chromium's windows start at 500
def test_a_browser_shows_it(bundle: Bundle, tmp_path: Path, width: int) -> None:
    assert CHROMIUM is not None
    target = tmp_path / "page.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={width},3000"]
    flags += [f"--user-data-dir={tmp_path}/profile", f"--screenshot={target}"]
    subprocess.run(
        [CHROMIUM, *flags, (bundle.path / "report.html").as_uri()], check=True, capture_output=True, timeout=120
    )
    shot = np.asarray(Image.open(target).convert("RGB")).astype(int)
    assert shot.shape[1] == width
    blue = (shot[..., 2] - shot[..., 0] > 60).mean()  # lines and bars
    assert 0.005 < blue < 0.5
    ink = shot[:, width - 4 :].std()
    assert ink < 5  # nothing runs out of the page on the right
