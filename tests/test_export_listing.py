"""The list of networks: what a person and what a program reads."""

import json

from engineworks.export.listing import as_json, as_table
from engineworks.models import NETWORKS


def row(name: str) -> str:
    return next(line for line in as_table().splitlines() if line.split()[0] == name)


def test_the_table_has_a_line_of_heads_and_one_for_every_network() -> None:
    first, *rest = as_table().splitlines()
    assert first.split() == ["network", "family", "parameters", "multiply-adds", "top-1", "weights", "paper"]
    assert [line.split()[0] for line in rest] == list(NETWORKS)


def test_a_row_tells_figures_weights_and_paper() -> None:
    assert row("resnet50").split()[:9] == ["resnet50", "resnet", "25.56", "M", "4.09", "G", "76.13", "%", "imagenet"]
    assert "He, Zhang, Ren, Sun" in row("resnet50")
    assert row("lenet5").split()[:8] == ["lenet5", "lenet5", "60.0", "k", "415.7", "k", "-", "shipped"]
    assert row("plain34").split()[6:8] == ["-", "none"]


def test_columns_stand_below_their_heads() -> None:
    lines = as_table().splitlines()
    start = lines[0].index("paper")
    assert all(line[start - 2 : start].isspace() and not line[start].isspace() for line in lines[1:])


def test_json_holds_the_registrys_own_numbers() -> None:
    records = json.loads(as_json())
    assert [record["name"] for record in records] == list(NETWORKS)
    for record in records:
        network = NETWORKS[record["name"]]
        assert record == {
            "name": network.name,
            "family": network.family,
            "parameters": network.parameters,
            "multiply_adds": network.multiply_adds,
            "top1": network.published.top1 if network.published else None,
            "weights": "shipped" if network.shipped else "imagenet" if network.published else None,
            "paper": network.paper,
        }
