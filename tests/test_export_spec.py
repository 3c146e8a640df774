"""What MODEL means is told by its form alone, and shown without this machine's folders."""

import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engineworks.export.spec import Spec, parse_model
from engineworks.runtime.errors import ExportError


@pytest.mark.parametrize(
    ("text", "spec", "name", "shown"),
    [
        ("resnet18", Spec("registry", "resnet18"), "resnet18", "resnet18"),
        ("timm:resnet18.a1_in1k", Spec("timm", "resnet18.a1_in1k"), "timm-resnet18.a1_in1k", "timm:resnet18.a1_in1k"),
        ("timm:hf-hub:a/b", Spec("timm", "hf-hub:a/b"), "timm-hf-hub-a-b", "timm:hf-hub:a/b"),
        ("torchvision:vgg16", Spec("torchvision", "vgg16"), "torchvision-vgg16", "torchvision:vgg16"),
        ("net.py:make", Spec("python", "net.py", "make"), "net-make", "net.py:make"),
        ("/secret/my net.py:A.b", Spec("python", "/secret/my net.py", "A.b"), "my-net-A.b", "my net.py:A.b"),
        ("pkg.mod:make", Spec("python", "pkg.mod", "make"), "pkg.mod-make", "pkg.mod:make"),
        ("/secret/net.onnx", Spec("onnx", "/secret/net.onnx"), "net", "net.onnx"),
        ("../net.v2.onnx", Spec("onnx", "../net.v2.onnx"), "net.v2", "net.v2.onnx"),
        ("a:b.onnx", Spec("onnx", "a:b.onnx"), "a-b", "a:b.onnx"),
        ("/secret/net.pt2", Spec("pt2", "/secret/net.pt2"), "net", "net.pt2"),
        ("...onnx", Spec("onnx", "...onnx"), "model", "...onnx"),
        ("图 像.onnx", Spec("onnx", "图 像.onnx"), "图-像", "图 像.onnx"),
    ],
)
def test_a_model_is_taken_apart_by_its_form(text: str, spec: Spec, name: str, shown: str) -> None:
    found = parse_model(text)
    assert found == spec
    assert (found.name, found.shown) == (name, shown)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("timm:", r"^timm:: which network of timm\? Write timm:NAME\.$"),
        ("torchvision:", r"Write torchvision:NAME\.$"),
        ("net.py", r"^net\.py: which function makes the network\? Write net\.py:FUNCTION\.$"),
        ("net.py:", r"Write net\.py:FUNCTION\.$"),
        ("net.py:make()", r"Write net\.py:FUNCTION\.$"),
        ("net.py:2", r"Write net\.py:FUNCTION\.$"),
        ("pkg:a b", r"Write pkg:FUNCTION\.$"),
        ("/x/best.pth", r"^best\.pth holds weights and no network\. Name the network, with --weights best\.pth\.$"),
        ("w.safetensors", "holds weights and no network"),
        ("w.pt", "holds weights and no network"),
        ("w.ckpt", "holds weights and no network"),
        ("w.bin", "holds weights and no network"),
    ],
)
def test_a_form_that_says_too_little_is_refused_with_the_form_that_does(text: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        parse_model(text)


@given(st.text(max_size=30))
@example(":make")
@example("a:b:c")
@example("\n.onnx")
def test_any_text_is_a_model_or_an_export_error_and_its_name_fits_a_folder(text: str) -> None:
    with contextlib.suppress(ExportError):
        found = parse_model(text)
        if found.kind != "registry":  # those are looked up, and an unknown one is refused
            assert found.name
            assert not set(found.name) & set("/\\ :\n\0")
            assert found.name not in {".", ".."}
