#!/usr/bin/env bash
# hypothesis's builds() leaves out what has a default, for a function, a class and a dataclass. For a
# NamedTuple it draws such a field as well, from its annotation, though a strategy was given for another
# field and the default would do: now and then a test gets a value that its strategy does not name.
# Exits with 0 if it is still so.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q hypothesis==6.170.17
cd "$work"
venv/bin/python - <<'PYTHON'
import sys
from dataclasses import dataclass
from typing import NamedTuple

import hypothesis
from hypothesis import given, settings
from hypothesis import strategies as st


class Tuple(NamedTuple):
    given: int
    left: bool = False


@dataclass
class Data:
    given: int
    left: bool = False


class Plain:
    def __init__(self, given: int, left: bool = False) -> None:
        self.left = left


def function(given: int, left: bool = False) -> Plain:
    return Plain(given, left)


def drawn(target):
    seen = set()

    @settings(max_examples=1000, database=None)
    @given(st.builds(target, st.integers()))
    def look(made):
        seen.add(made.left)

    look()
    return seen


print(f"hypothesis {hypothesis.__version__}: builds(..., integers()), where `left: bool = False`")
found = {target.__name__: drawn(target) for target in (Tuple, Data, Plain, function)}
for name, values in found.items():
    print(f"    {name:10} left is {' or '.join(map(str, sorted(values)))}")
others = [found[name] for name in ("Data", "Plain", "function")]
sys.exit(not (found["Tuple"] == {False, True} and others == [{False}] * 3))
PYTHON
