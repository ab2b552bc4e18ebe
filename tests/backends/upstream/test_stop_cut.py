from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from axion.backends.upstream.stop_cut import StopCut

pieces = st.lists(st.text("ab", max_size=3), max_size=12)
strings = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3)


@given(pieces, strings, st.booleans())
def test_the_text_ends_at_the_first_stop_string_with_the_tokens_that_begin_before(
    tokens: list[str], stop: list[str], include: bool
):
    cut = StopCut[int](tuple(stop), include)
    shown, told, met = "", [], None
    for i, token in enumerate(tokens):
        text, groups, met = cut.push(token, i)
        shown += text
        told += groups
        if met is not None:
            break
    else:
        text, groups = cut.flush()
        shown += text
        told += groups
    whole = "".join(tokens)
    ends = [whole.find(string) + len(string) for string in stop if string in whole]
    end = min(ends, default=len(whole))
    if ends:
        (longest, *_) = sorted((s for s in stop if whole[:end].endswith(s)), key=len, reverse=True)
        assert met == longest
        end -= 0 if include else len(longest)
    assert shown == whole[:end]
    begins = [len("".join(tokens[:i])) for i in range(len(tokens))]
    if met is None:
        assert told == [*range(len(tokens))]
    else:
        assert told == [*range(len(told))]
        assert all(begins[i] <= end for i in told)
        assert all(begins[i] >= end or not tokens[i] for i in range(len(told), len(tokens)))


def test_before_it_counts_a_stop_string_is_text():
    cut = StopCut[None](("b",), include=False)
    assert cut.push("ab", None, may_stop=False) == ("ab", [], None)
    assert cut.push("ab", None) == ("a", [], "b")
