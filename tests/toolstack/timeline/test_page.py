from __future__ import annotations

import re
from functools import cache
from html.parser import HTMLParser

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.toolstack.timeline.traces import precopy
from xen_save_helper.toolstack.timeline import page
from xen_save_helper.toolstack.timeline.model import draw
from xen_save_helper.toolstack.timeline.picture import Picture

VOID = {"meta", "input", "br"}
HOSTILE = (
    "</title></script><script>alert(1)</script><img src=x onerror=y>\"'&amp;]]>--> \ud800\x00☃"
)


class Markup(HTMLParser):
    """The elements of a page, which must be well nested, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        for mine in ("script", "style"):
            # Ours, in which nothing is a trace's; the parser is slow in them.
            start, end = text.rindex(f"<{mine}>") + len(mine) + 2, text.rindex(f"</{mine}>")
            text = text[:start] + text[end:]
        self.feed(text)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self._open):
            self.text += data

    def shape(self) -> list[tuple[str, tuple[str, ...]]]:
        return [(tag, tuple(attributes)) for tag, attributes in self.elements]


def test_a_real_page_needs_nothing_else(real_picture: Picture) -> None:
    text = page.page(real_picture)
    markup = Markup(text)
    for tag, attributes in markup.elements:
        assert tag not in {"link", "img", "iframe", "object"}
        assert not {"src", "href", "style", "action"} & set(attributes)
        assert not any(name.startswith("on") for name in attributes)
    assert "http://" not in re.sub(r'"http://www.w3.org/2000/svg"', "", text)
    assert "https://" not in text
    policy = next(one for tag, one in markup.elements if tag == "meta" and "http-equiv" in one)
    assert str(policy["content"]).startswith("default-src 'none'")
    assert len(text) < 400_000


def test_all_is_there_without_javascript(real_picture: Picture) -> None:
    text = " ".join(Markup(page.page(real_picture)).text.split())
    assert "Migration of demo: postcopy" in text
    assert "migrated: the guest runs at the destination" in text
    assert "Downtime, taken apart" in text
    assert "device model" in text
    assert "Rounds of memory" in text
    assert "vCPUs waited for" in text
    assert "at most 0" in text, "the reason of the policy"
    assert "both sides have the same one" in text


def test_each_thing_can_be_reached_and_is_named(real_picture: Picture) -> None:
    items = [one for _tag, one in Markup(page.page(real_picture)).elements if "data-details" in one]
    assert len(items) > 40
    assert [one["tabindex"] for one in items].count("0") == 1
    assert all(one["role"] == "button" and one["aria-label"] for one in items)


def with_texts(text: str) -> str:
    """A page of a migration whose guest, reasons and whatever else have this text."""
    both = precopy(guest=text or "web")
    here, helper = (0, 10, "controller"), (0, 11, "helper")
    both.add(1.55, *here, "precopy_policy", iteration=1, why=text, answer=text, dirty_count=1)
    both.add(1.56, *helper, "phase", name=text, state="begin")
    both.add(1.56, *helper, "failure", phase=text, error=text)
    both.add(1.57, *here, "fault", fault=text, point=text, action=text)
    both.add(1.58, *here, text or "x", **{"a" + text: text, "list": [text, {text: text}]})
    both.add(1.59, *helper, "round", doing_what=text, seconds=0.001, pages=3)
    return page.page(draw(both.operation(), [text], [text]))


@cache
def plain_elements() -> set[str]:
    return {tag for tag, _ in Markup(with_texts("plain")).shape()}


@given(st.text(max_size=60) | st.sampled_from([HOSTILE, "<b>", "&lt;", "'", '"', "`"]))
@settings(deadline=None, max_examples=25)
def test_what_a_trace_says_is_text_and_nothing_else(text: str) -> None:
    markup = Markup(with_texts(text).encode("utf-8", "backslashreplace").decode())
    assert {tag for tag, _ in markup.shape()} <= plain_elements()
    assert [tag for tag, _ in markup.elements if tag == "script"] == ["script"]
    for _tag, attributes in markup.elements:
        assert not any(name.startswith("on") for name in attributes)


def test_a_page_of_hostile_texts_has_the_same_elements() -> None:
    assert Markup(with_texts(HOSTILE)).shape() == Markup(with_texts("plain text " * 9)).shape()


def test_a_long_trace_does_not_make_an_endless_page() -> None:
    both = precopy()
    for number in range(5_000):
        both.add(0.5 + number * 2e-4, 0, 10, "controller", "consequence", reason=f"{number}")
    text = page.page(draw(both.operation()))
    assert "are left out" in text
    assert len(text) < 4_000_000
