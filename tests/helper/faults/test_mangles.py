from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ipc_schema.channel.catalogue_values import fields_of
from xen_save_helper.helper.faults.mangles import ON_PIPE, ON_ZMQ
from xen_save_helper.ipc_schema.channel import msgpack_codec, pipe_codec
from xen_save_helper.ipc_schema.channel.messages import CALLBACKS, CATALOGUE, Dialect
from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.faults.actions import MESSAGE, REORDER, WRONG_SEQUENCE

DIALECT = Dialect.MAINLINE
NEVER_READ = ("garbage", "truncate", "oversize", "wrong-number")

messages = st.sampled_from(sorted(CATALOGUE)).flatmap(
    lambda name: st.tuples(st.just(name), fields_of(CATALOGUE[name]))
)
pipe_messages = st.sampled_from([row.name for row in CALLBACKS if DIALECT in row.numbers]).flatmap(
    lambda name: st.tuples(st.just(name), fields_of(CATALOGUE[name]))
)


def test_each_encoding_knows_what_may_be_done() -> None:
    names = {kind.name for kind in MESSAGE} - {REORDER.name}
    assert set(ON_ZMQ) == names
    assert set(ON_PIPE) == names - {WRONG_SEQUENCE.name}


@pytest.mark.parametrize("action", NEVER_READ)
@given(message=messages, seed=st.integers(0, 99))
def test_what_is_damaged_on_zmq_is_no_message(
    action: str, message: tuple[str, dict[str, object]], seed: int
) -> None:
    data = msgpack_codec.encode(7, *message)
    (made,) = ON_ZMQ[action](data, Random(seed))
    assert ON_ZMQ[action](data, Random(seed)) == [made]
    with pytest.raises(DecodeError):
        msgpack_codec.decode(made)


@given(message=messages)
def test_the_sequence_number(message: tuple[str, dict[str, object]]) -> None:
    data = msgpack_codec.encode(7, *message)
    (made,) = ON_ZMQ["wrong-sequence"](data, Random(1))
    before, after = msgpack_codec.decode(data), msgpack_codec.decode(made)
    assert after == before._replace(seq=8)


@pytest.mark.parametrize("action", [name for name in NEVER_READ if name != "truncate"])
@given(message=pipe_messages, seed=st.integers(0, 99))
def test_what_is_damaged_on_a_pipe_is_a_frame_of_no_message(
    action: str, message: tuple[str, dict[str, object]], seed: int
) -> None:
    data = pipe_codec.encode_message(DIALECT, *message)
    (made,) = ON_PIPE[action](data, Random(seed))
    frame, body = made[: pipe_codec.HEADER_SIZE], made[pipe_codec.HEADER_SIZE :]
    assert pipe_codec.decode_header(frame) == len(body)
    for operation in CATALOGUE[message[0]].operations:
        with pytest.raises(DecodeError):
            pipe_codec.decode_body(DIALECT, operation, body)


@given(message=pipe_messages)
def test_what_is_not_damaged(message: tuple[str, dict[str, object]]) -> None:
    data = pipe_codec.encode_message(DIALECT, *message)
    assert ON_PIPE["drop"](data, Random(1)) == []
    assert ON_PIPE["duplicate"](data, Random(1)) == [data, data]
    assert ON_PIPE["truncate"](data, Random(1)) == [data[: len(data) // 2]]
