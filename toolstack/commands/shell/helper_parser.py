"""The command line of `xen-save-helper` as a parser, for its man page and its completion. The
helper itself starts without argparse."""

from __future__ import annotations

import argparse
import re
from typing import Final

from xen_save_helper.helper.command_line import ENVIRONMENT, EXIT_STATUS, OPTIONS


def make_helper_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="xen-save-helper",
        description="Save or restore one Xen domain for a toolstack, which starts it.",
    )
    for mode in ("--save-domain", "--restore-domain"):
        parser.add_argument(
            mode, nargs="+", metavar="NUMBER", help="as libxl starts it, with its numbers"
        )
    for name, option in OPTIONS.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            metavar=option.metavar,
            choices=option.metavar.split("|") if option.metavar.islower() else None,
            help=option.text,
        )
    parser.add_argument("--check", action="store_true", help="say what each setting is, where it "
                        "comes from, and what is wrong; exit status 1 if anything is")  # fmt: skip
    parser.add_argument(
        "--version", action="store_true", help="print the version, and which Xen is found"
    )
    return parser


SECTIONS: Final = {
    "ENVIRONMENT": ENVIRONMENT,
    "EXIT STATUS": re.sub(r"(?:^|, )(\d+) ", r"\n  \1  ", EXIT_STATUS),
}
"""What its man page has besides the options, from the helper's own help (see `manual.section`)."""
