from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axion.backends.events import EventReader, ServerEvent

STREAM = (
    b'\xef\xbb\xbf: a comment\n\ndata: {"a": 1}\n\n'
    b"data:first\r\ndata: second\r\ndata\r\n\r\n"
    b"event: error\rdata: broken\r\rid: 7\nretry: 10\ndata:  two spaces\n\n"
    b"event: unused\n\ndata: \xe2\x82\xac\n\ndata: [DONE]\n\ndata: never ended"
)
EVENTS = [
    ServerEvent(b'{"a": 1}'),
    ServerEvent(b"first\nsecond\n"),
    ServerEvent(b"broken", b"error"),
    ServerEvent(b" two spaces"),
    ServerEvent("€".encode()),
    ServerEvent(b"[DONE]"),
]


@given(st.lists(st.integers(0, len(STREAM))))
def test_a_stream_is_the_same_however_it_is_cut(cuts: list[int]):
    edges = [0, *sorted(cuts), len(STREAM)]
    reader = EventReader()
    events = [
        event
        for start, end in itertools.pairwise(edges)
        for event in reader.push(STREAM[start:end])
    ]
    assert events == EVENTS


@given(st.binary(max_size=200))
def test_any_bytes_are_read(data: bytes):
    assert all(event.data is not None for event in EventReader().push(data))


@pytest.mark.parametrize("data", [b"data: " + b"x" * 100, b"data: xxxxx\n" * 10])
def test_an_event_without_end_is_refused(data: bytes):
    reader = EventReader(max_bytes=40)
    with pytest.raises(ValueError, match="longer than 40"):
        reader.push(data)
