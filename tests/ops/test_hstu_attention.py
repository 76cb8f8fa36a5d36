"""Pointwise attention in blocks, compared with the formula computed row by row."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attention_cases import DAY, LONGEST, SECOND, make, run
from torch import Tensor

from nextitem.core.jagged import offsets_of
from nextitem.ops import hstu_attention as module
from nextitem.ops.hstu_attention import Layout, TimeScale, hstu_attention, hstu_attention_reference, time_buckets


def assert_equal_to_reference(parts: list[Tensor], layout: Layout, **used: bool) -> None:
    actual, actual_grads = run(hstu_attention, parts, layout, **used)
    expected, expected_grads = run(hstu_attention_reference, parts, layout, **used)
    torch.testing.assert_close(actual, expected)
    for left, right in zip(actual_grads, expected_grads, strict=True):
        torch.testing.assert_close(left, right)


@settings(max_examples=120, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 12), st.floats(0, 1)), min_size=1, max_size=7).filter(
        lambda rows: any(length for length, _ in rows)
    ),
    tail=st.booleans(),
    block=st.sampled_from([1, 20, 100, 2**19]),
    max_cached=st.sampled_from([0, 2**22]),
    position=st.booleans(),
    time=st.booleans(),
    heads=st.integers(1, 3),
    window=st.none() | st.integers(1, 13),
)
def test_blocks_equal_the_formula(
    rows: list[tuple[int, float]],
    tail: bool,
    block: int,
    max_cached: int,
    position: bool,
    time: bool,
    heads: int,
    window: int | None,
) -> None:
    """Covers forward and backward; empty, short and long rows; all queries or the last queries of each row."""
    lengths = [length for length, _ in rows]
    num_queries = [round(share * length) for length, share in rows] if tail else None
    if num_queries is not None and not sum(num_queries):
        num_queries = lengths
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        patch.setattr(module, "MAX_CACHED_PAIRS", max_cached)
        parts, layout = make(lengths, heads=heads, num_queries=num_queries)
        assert_equal_to_reference(parts, layout.within(window), position=position, time=time)


@settings(max_examples=120, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 9)), min_size=1, max_size=6).filter(
        lambda rows: any(count for _, count in rows)
    ),
    block=st.sampled_from([1, 20, 100, 2**19]),
    max_cached=st.sampled_from([0, 2**22]),
    position=st.booleans(),
    time=st.booleans(),
    scale=st.sampled_from(["log", "sqrt"]),
    window=st.none() | st.integers(1, 13),
    seed=st.integers(0, 99),
)
def test_queries_that_see_some_first_keys_equal_the_formula(
    rows: list[tuple[int, int]],
    block: int,
    max_cached: int,
    position: bool,
    time: bool,
    scale: TimeScale,
    window: int | None,
    seed: int,
) -> None:
    """Candidates of a ranker stand after the events before their request, whatever their number."""
    generator = torch.Generator().manual_seed(seed)
    lengths, counts = [length for length, _ in rows], [count for _, count in rows]
    parts, layout = make(lengths, num_queries=lengths)
    parts[0] = torch.randn(sum(counts), 2, 3, generator=generator, dtype=torch.float64).requires_grad_()
    parts[4] = torch.randn(2048, generator=generator, dtype=torch.float64).requires_grad_()
    limits = torch.tensor(lengths).repeat_interleave(torch.tensor(counts))
    visible_keys = (torch.rand(len(limits), generator=generator) * (limits + 1)).long()
    times = torch.randint(0, 90 * DAY, (len(limits),), generator=generator)
    layout = Layout(layout.offsets, offsets_of(torch.tensor(counts)), times, layout.key_times, visible_keys, scale)
    layout = layout.within(window)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        patch.setattr(module, "MAX_CACHED_PAIRS", max_cached)
        assert_equal_to_reference(parts, layout, position=position, time=time)


def test_a_window_reads_only_its_keys_of_a_long_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 100)
    _, layout = make([50])
    widths = [block.keys.shape[1] for block in layout.within(3).blocks]
    assert len(widths) == 25  # two queries each
    assert max(widths) == 4  # the windows of two neighbours
    assert layout.within(3) is layout.within(3)
    assert layout.within(None) is layout


def test_a_query_that_sees_all_keys_equals_the_last_token_but_for_itself() -> None:
    parts, layout = make([6], num_queries=[1])
    query, key, value, position_weights, time_weights = (part.detach() for part in parts)
    whole = hstu_attention(
        query, key, value, layout, normaliser=7.0, position_weights=position_weights, time_weights=time_weights
    )
    assert layout.key_times is not None
    earlier = Layout(
        torch.tensor([0, 5]), torch.tensor([0, 1]), layout.query_times, layout.key_times[:5], torch.tensor([5])
    )
    before = hstu_attention(
        query, key[:5], value[:5], earlier, normaliser=7.0, position_weights=position_weights, time_weights=time_weights
    )
    own_time = time_buckets(layout.query_times - layout.key_times[5:])  # type: ignore[operator]
    score = (query[0] * key[5]).sum(-1) + position_weights[LONGEST - 1] + time_weights[own_time]
    own = torch.nn.functional.silu(score)[:, None] * value[5] / 7.0
    torch.testing.assert_close(whole[0], before[0] + own)


def test_a_long_row_is_split_into_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 200)
    parts, layout = make([3, 40, 0, 7])
    assert [(*block.queries.shape, block.keys.shape[1]) for block in layout.blocks][-1] == (1, 5, 40)
    assert_equal_to_reference(parts, layout, position=True, time=True)


def test_gradients_equal_finite_differences() -> None:
    parts, layout = make([3, 0, 2], heads=1, widths=(2, 2))

    def call(q: Tensor, k: Tensor, v: Tensor, p: Tensor, t: Tensor) -> Tensor:
        return hstu_attention(q, k, v, layout, normaliser=4.0, scale=0.5, position_weights=p, time_weights=t)

    assert torch.autograd.gradcheck(call, tuple(parts))


def test_time_buckets_on_the_scale_of_square_roots_equal_golden_values() -> None:
    minutes = torch.tensor([-5, 0, 1, 3, 4, 60, 24 * 60, 365 * 24 * 60, 10**8])
    assert time_buckets(minutes * 60 * SECOND, "sqrt").tolist() == [0, 0, 1, 1, 2, 7, 37, 724, 2047]


def test_time_buckets_equal_golden_values() -> None:
    seconds = [0, 1, 2, 60, 3600, 86400, 7 * 86400, 365 * 86400, 10**13]
    actual = time_buckets(torch.tensor(seconds) * SECOND)
    assert actual.tolist() == [0, 0, 2, 13, 27, 37, 44, 57, 99]
    assert time_buckets(torch.tensor([-5 * DAY])).tolist() == [0]


def test_position_bias_equals_golden_values() -> None:
    """For 4 tokens the rows of indices are 3456/2345/1234/0123; keys beyond the diagonal never count."""
    one = torch.ones(4, 1, 1)
    weights = torch.arange(7.0) + 10
    out = hstu_attention(
        torch.zeros(4, 1, 1), one, one, Layout(torch.tensor([0, 4])), normaliser=1.0, position_weights=weights
    )
    silu = torch.nn.functional.silu(weights)
    expected = [silu[3], silu[2:4].sum(), silu[1:4].sum(), silu[0:4].sum()]
    torch.testing.assert_close(out.flatten(), torch.stack(expected))


def test_outputs_do_not_depend_on_later_tokens() -> None:
    parts, layout = make([8, 5])
    parts = [part.detach() for part in parts]
    before = run_plain(parts, layout)
    for part in parts[:3]:
        part[5:8] += 1
        part[11:] += 1
    after = run_plain(parts, layout)
    assert torch.equal(before[:5], after[:5])
    assert torch.equal(before[8:11], after[8:11])
    assert not torch.equal(before[5:8], after[5:8])


def run_plain(parts: list[Tensor], layout: Layout, normaliser: float = 7.0) -> Tensor:
    query, key, value, position, time = parts
    return hstu_attention(
        query, key, value, layout, normaliser=normaliser, position_weights=position, time_weights=time
    )


def test_a_row_alone_gives_the_same_output_as_in_a_batch() -> None:
    lengths = [4, 9, 1, 6]
    parts, layout = make(lengths)
    whole = run_plain(parts, layout)
    assert layout.query_times is not None
    assert layout.key_times is not None
    for row in range(4):
        here = slice(int(layout.offsets[row]), int(layout.offsets[row + 1]))
        alone = Layout(torch.tensor([0, lengths[row]]), None, layout.query_times[here], layout.key_times[here])
        single = run_plain([*(part[here] for part in parts[:3]), *parts[3:]], alone)
        torch.testing.assert_close(single, whole[here])


def test_the_last_queries_alone_give_the_same_output_as_all_queries() -> None:
    parts, layout = make([6, 3, 8])
    num_queries = [2, 1, 5]
    places = torch.cat([torch.arange(end - n, end) for end, n in zip([6, 9, 17], num_queries, strict=True)])
    assert layout.query_times is not None
    tail = Layout(layout.offsets, offsets_of(torch.tensor(num_queries)), layout.query_times[places], layout.key_times)
    actual = run_plain([parts[0][places], *parts[1:]], tail)
    torch.testing.assert_close(actual, run_plain(parts, layout)[places])


def test_outputs_scale_with_the_normaliser_and_with_repeated_events() -> None:
    """Pointwise attention preserves intensity: repeated events add up; a softmax would average them."""
    parts, layout = make([6])
    torch.testing.assert_close(2 * run_plain(parts, layout, 14.0), run_plain(parts, layout, 7.0))
    once = torch.ones(1, 1, 2)
    norms = []
    for count in (1, 2, 4):
        same_event = once.expand(count, 1, 2).contiguous()
        out = hstu_attention(same_event, same_event, same_event, Layout(torch.tensor([0, count])), normaliser=4.0)
        norms.append(float(out[-1].norm()))
    assert norms[1] == pytest.approx(2 * norms[0])
    assert norms[2] == pytest.approx(4 * norms[0])


def test_wrong_arguments_raise_an_error() -> None:
    parts, layout = make([LONGEST + 1])
    with pytest.raises(ValueError, match="a row has 41 tokens, position_weights reach 40"):
        run_plain(parts, layout)
    with pytest.raises(ValueError, match="time_weights need"):
        hstu_attention(parts[0], parts[1], parts[2], Layout(layout.offsets), normaliser=1.0, time_weights=parts[4])


@pytest.mark.slow
def test_memory_of_a_long_row_is_bounded_by_the_block_size() -> None:
    """With 8192 tokens, all scores of two heads would take 512 MiB, and as much again in the backward pass."""
    code = """
import torch
from pathlib import Path
from nextitem.ops.hstu_attention import Layout, hstu_attention
def kib(name):  # getrusage would return the peak of the parent process
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0])
def run(length):
    q, k, v = (torch.randn(length, 2, 32, requires_grad=True) for _ in range(3))
    times = torch.arange(length) * 10**6
    p, t = torch.randn(2 * length - 1, requires_grad=True), torch.randn(129, requires_grad=True)
    layout = Layout(torch.tensor([0, length]), None, times + 5, times)
    hstu_attention(q, k, v, layout, normaliser=float(length), position_weights=p, time_weights=t).sum().backward()
run(64)
before = kib("VmRSS")
run(8192)
print((kib("VmHWM") - before) / 1024)
"""
    actual = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 10 < float(actual.stdout) < 400
