"""The text of a plan is read strictly: sizes follow from the batch, and what is odd is refused."""

import pytest

from engineworks.runtime.errors import PlanError
from engineworks.runtime.plan_text import ENGINE, FUSED, read_blocks
from tests.written_plan import FREE, block, plan, small, statement, tensor


def test_blocks_tell_their_version_targets_inputs_tensors_and_statements() -> None:
    engine, fused = read_blocks(small(), None)
    assert (engine.version, fused.version) == (ENGINE, FUSED)
    assert (engine.targets, engine.inputs) == (("sm86",), ("x",))
    weights = engine.tensors["w"]
    assert (weights.dtype, weights.dims, weights.bytes) == ("float16", (16, 4, 3, 3), 16 * 4 * 3 * 3 * 2)
    assert [line.kind for line in engine.statements] == ["signal", "function", "corrltn", "runtime_fusion"]
    assert engine.statements[1].names("input_args", "input") == ("x", "n")
    assert engine.statements[3].value("binary") == "0" and engine.statements[2].value("name") == "conv"


def test_sizes_follow_from_the_batch_by_copies_and_products() -> None:
    text = block("x", [tensor("x", "float16", "n", 3), tensor("f", "int8", "rows", 2)], [], sizes=FREE)
    tensors = read_blocks(plan(text), 5)[0].tensors
    assert (tensors["x"].dims, tensors["f"].dims, tensors["f"].bytes) == ((5, 3), (245, 2), 490)


def test_an_assertion_whose_message_has_several_lines_is_passed_over() -> None:
    said = (
        '  assert={ name=check input={"n_shapeInput" } stream=0 msg="\nError during shape inference\nIt is odd; " }\n'
    )
    text = block("x", [tensor("x", "float16", "n", 3)], [], sizes=FREE + said)
    assert read_blocks(plan(text), 5)[0].tensors["x"].dims == (5, 3)


def test_a_free_batch_must_be_given() -> None:
    with pytest.raises(PlanError, match="batch is free: pass --batch"):
        read_blocks(small(batch="n"), None)


def test_a_size_that_does_not_follow_from_the_batch_is_refused() -> None:
    text = block("x", [tensor("x", "float16", "elsewhere", 3)], [], sizes=FREE)
    with pytest.raises(PlanError, match="a size of the plan, elsewhere, does not follow"):
        read_blocks(plan(text), 5)


@pytest.mark.parametrize(
    ("tensors", "statements", "message"),
    [
        ([tensor("x", "fp8e4", 1)], [], "a tensor of the plan is written in an unknown way"),
        (["  tensor={ who knows }"], [], "a tensor of the plan is written in an unknown way"),
        ([], ["  goto bb7"], "a statement of the plan is written in an unknown way"),
    ],
)
def test_what_is_written_in_an_unknown_way_is_refused(tensors: list[str], statements: list[str], message: str) -> None:
    with pytest.raises(PlanError, match=f"not readable: {message}"):
        read_blocks(plan(block("x", tensors, statements)), 1)


def test_a_block_of_another_version_and_a_cut_one_are_refused() -> None:
    with pytest.raises(PlanError, match="of another version"):
        read_blocks(plan(block("x", [], [], version=6)), 1)
    with pytest.raises(PlanError, match="the plan's text is cut"):
        read_blocks(plan(block("x", [tensor("x", "int8", 1)], [statement("function", "f", "x", "x")]))[:-9], 1)


def test_the_four_letters_among_weights_are_no_block() -> None:
    assert len(read_blocks(small() + b"NLYM\xa1\xda\x1e\x00" + bytes(40), None)) == 2
    with pytest.raises(PlanError, match="no text of an engine"):
        read_blocks(b"NLYM\xa1\xda\x1e\x00", None)
