"""Hypothesis strategies for the messages that the catalogue allows."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from xen_save_helper.ipc_schema.channel.messages import INTEGER_RANGES, Kind, Message

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)

VALUES: dict[Kind, st.SearchStrategy[Any]] = {
    **{kind: st.integers(low, high) for kind, (low, high) in INTEGER_RANGES.items()},
    Kind.STRING: TEXT,
    Kind.BYTES: st.binary(max_size=40),
    Kind.BOOL: st.booleans(),
}


def fields_of(message: Message) -> st.SearchStrategy[dict[str, Any]]:
    """The fields of a message, with any values they may have."""
    return st.fixed_dictionaries({field.name: VALUES[field.kind] for field in message.fields})
