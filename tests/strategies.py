"""What hypothesis makes for the tests: frames, messages, junk and the places to cut them at."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from wire import BINARY, CONTINUATION, PING, PONG, TEXT, client_frame

#: For tests of properties: a bounded number of examples, and no verdict that depends on the machine's speed.
bounded = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])

masking_keys = st.binary(min_size=4, max_size=4)
cuts = st.lists(st.integers(0, 1 << 16), max_size=12)
#: Around the places where the form of the length changes, and anything small.
payloads = st.one_of(st.binary(max_size=40), st.sampled_from([125, 126, 127, 1023, 1024, 1025]).map(bytes))
texts = st.text(max_size=40)


class Stream(NamedTuple):
    """The bytes of a peer that keeps the rules and what they say, a list of opcodes and payloads."""

    data: bytes
    events: list[tuple[int, str | bytes]]


@st.composite
def streams(draw: st.DrawFn) -> Stream:
    """Messages in any fragments, with control frames in between."""
    data = b""
    events: list[tuple[int, str | bytes]] = []

    def control() -> bytes:
        opcode = draw(st.sampled_from([PING, PONG]))
        payload = draw(st.binary(max_size=125))
        events.append((opcode, payload))
        return client_frame(opcode, payload, mask=draw(masking_keys))

    for message in draw(st.lists(st.one_of(texts, payloads), max_size=5)):
        opcode, octets = (TEXT, message.encode()) if isinstance(message, str) else (BINARY, message)
        marks = sorted(draw(st.lists(st.integers(0, len(octets)), max_size=4)))
        parts = [octets[start:end] for start, end in zip([0, *marks], [*marks, len(octets)])]
        for i, part in enumerate(parts):
            if draw(st.booleans()):
                data += control()
            fin = i == len(parts) - 1
            data += client_frame(CONTINUATION if i else opcode, part, fin=fin, mask=draw(masking_keys))
        events.append((opcode, message))
    return Stream(data, events)


#: Frames that keep the rules more often than not: junk that gets past the first octet.
wild_frames = st.builds(
    client_frame,
    opcode=st.one_of(st.sampled_from([TEXT, BINARY, CONTINUATION, PING, PONG, 8]), st.integers(0, 15)),
    payload=st.one_of(st.binary(max_size=8), texts.map(str.encode), st.just(b"\x03\xe8"), st.just(bytes(130))),
    fin=st.booleans(),
    rsv=st.sampled_from([0] * 9 + [4, 2, 1]),
    mask=st.one_of(masking_keys, masking_keys, masking_keys, st.none()),
    length_form=st.sampled_from([None, None, 16, 64]),
)
#: Anything: octets without sense, or frames without order.
junk = st.one_of(st.binary(max_size=200), st.lists(wild_frames, max_size=8).map(b"".join))
