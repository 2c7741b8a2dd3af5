"""Takes a picture of a timeline for a page of the documentation:

python -m tests.timeline_picture EVENTS... -o toolstack/timeline/example.png
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.chromium import chromium, resize
from xen_save_helper.toolstack.timeline.files import picture_of, write_page
from xen_save_helper.toolstack.timeline.operations import find_operations
from xen_save_helper.toolstack.timeline.trace_lines import read_trace

WIDTH = 1280


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("events", nargs="+", type=Path)
    parser.add_argument("-o", "--output", required=True, type=Path)
    parser.add_argument("--operation", type=int, default=0, metavar="N", help="default: the last")
    arguments = parser.parse_args()
    files = [read_trace(path) for path in arguments.events]
    picture = picture_of(files, find_operations(files)[arguments.operation - 1])
    with tempfile.TemporaryDirectory() as scratch, chromium() as browser:
        page = Path(scratch) / "timeline.html"
        write_page(picture, page)
        resize(browser, WIDTH, 800)
        browser.get(page.as_uri())
        # The chart, and what is below it up to the rounds.
        bottom = "return document.querySelector('.rounds, .sources').getBoundingClientRect().top"
        resize(browser, WIDTH, int(browser.execute_script(bottom)))
        browser.save_screenshot(str(arguments.output))


if __name__ == "__main__":
    main()
