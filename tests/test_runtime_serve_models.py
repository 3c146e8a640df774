"""Where models come from, which version answers, and that one in use is not closed."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engineworks.runtime.errors import BundleError
from engineworks.runtime.oip_errors import Refusal
from engineworks.runtime.serve_model import Opening
from engineworks.runtime.serve_models import Models


def models(repository: Path | None = None) -> Models:
    return Models(Opening(device="cpu", contexts=1), ThreadPoolExecutor(1), repository)


def test_names_and_versions_are_given_or_found(served_bundle: Path) -> None:
    made = models()
    for text in (f"{served_bundle}", f"{served_bundle}", f"a={served_bundle}", f"a:9={served_bundle}"):
        made.add(text)
    assert list(made.sources) == [("four-fp16", "1"), ("four-fp16", "2"), ("a", "1"), ("a", "9")]


@pytest.mark.parametrize("label", ["../x", "a b", ".x", "a:0", "a:x", "a:1:2", "é", "x" * 200])
def test_what_can_be_no_name_or_version_is_refused(served_bundle: Path, label: str) -> None:
    with pytest.raises(BundleError, match="NAME:VERSION=BUNDLE"):
        models().add(f"{label}={served_bundle}")


def test_a_version_twice_and_no_bundle_are_refused(served_bundle: Path, tmp_path: Path) -> None:
    made = models()
    made.add(f"a:1={served_bundle}")
    with pytest.raises(BundleError, match="a whole version that is free"):
        made.add(f"a:1={served_bundle}")
    with pytest.raises(BundleError, match="no bundle"):
        made.add(str(tmp_path))


def test_a_repository_holds_bundles_and_versions_of_them(served_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to(served_bundle)
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "3").symlink_to(served_bundle)
    (tmp_path / "two" / "notes").mkdir()
    (tmp_path / ".hidden").symlink_to(served_bundle)
    made = models(tmp_path)
    made.rescan()
    assert list(made.sources) == [("one", "1"), ("two", "3")]
    with pytest.raises(BundleError, match="expected a folder of bundles"):
        models(tmp_path / "nowhere").rescan()


def test_a_version_in_use_is_closed_when_it_is_let_go(served_bundle: Path) -> None:
    made = models()
    made.add(f"a={served_bundle}")

    async def swap() -> None:
        old = await made.load(("a", "1"))
        old.users += 1
        new = await made.load(("a", "1"))
        assert made.find("a") is new and old.retired
        made.threads.submit(lambda: None).result()
        old.session.infer({"image": old.session._zeros(1)["image"]})  # still open
        made.release(old)
        made.threads.submit(lambda: None).result()
        with pytest.raises(Exception, match="closed"):
            old.session.infer(old.session._zeros(1))
        made.unload("a")
        with pytest.raises(Refusal, match="no such model") as refused:
            made.find("a")
        assert refused.value.status == 404

    asyncio.run(swap())
    made.threads.shutdown()
