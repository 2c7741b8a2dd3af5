"""`python -m tests.fuzz`: see the package."""

from __future__ import annotations

import argparse
import json
import secrets
import signal
import sys
from random import Random

from tests.fuzz.campaign import Campaign, Result
from tests.fuzz.judge import LIMIT, MEMORY, judge
from tests.fuzz.worker import KINDS, input_of, targets_of


def main() -> int:
    """0 if all held, 1 if not, 2 for usage."""
    options = _parse()
    # As ^C does: processes and domains are ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    seed = options.seed or str(secrets.randbelow(10**9))
    if options.only:
        return _only(seed, *options.only)
    if not options.json:
        print(f"seed {seed}", flush=True)
    results = []
    for kind in KINDS:
        campaign = Campaign(kind, seed, getattr(options, kind), options.jobs)
        results.append(campaign.run(_show_failure if not options.json else lambda _: None))
        if not options.json:
            _show(results[-1])
    if options.json:
        print(json.dumps({"seed": seed, "kinds": {r.kind: r.as_dict() for r in results}}, indent=1))
    return int(any(result.failures for result in results))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description="Fuzz messages, records and streams."
    )
    parser.add_argument("--messages", type=int, default=20_000, metavar="N", help="(20000)")
    parser.add_argument("--records", type=int, default=10_000, metavar="N", help="(10000)")
    parser.add_argument("--seed", help="makes the same inputs again; a new one where none is given")
    parser.add_argument("--jobs", type=int, default=1, metavar="J", help="processes (1)")
    parser.add_argument("--json", action="store_true", help="the results as JSON")
    parser.add_argument(
        "--only", type=_place, metavar="KIND:INDEX", help="this input alone, with its octets"
    )
    options = parser.parse_args()
    if options.jobs < 1 or options.messages < 0 or options.records < 0:
        parser.error("want a number of inputs, and at least one process")
    if options.only and not options.seed:
        parser.error("--only needs the --seed")
    return options


def _place(text: str) -> tuple[str, int]:
    kind, _, index = text.partition(":")
    if kind not in KINDS or not index.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}: want {' or '.join(KINDS)}, a colon, a number")
    return kind, int(index)


def _only(seed: str, kind: str, index: int) -> int:
    targets = targets_of(kind)
    try:
        target, data = input_of(targets, kind, seed, index)
        print(f"{target.name}: {len(data)} octets\n{data.hex()}", flush=True)
        outcome, wrong = judge(target, data, Random(index))
    finally:
        for each in targets:
            each.close()
    print(wrong or outcome)
    return int(bool(wrong))


def _show_failure(failure: dict[str, object]) -> None:
    print(
        f"FAILED {failure['target']}: {failure['what']}\n"
        f"  --seed {failure['seed']} --only {failure['kind']}:{failure['index']}, smaller:\n"
        f"  {failure['data']}",
        flush=True,
    )


def _show(result: Result) -> None:
    tally = result.tally
    rate = tally.inputs / result.seconds if result.seconds else 0
    print(
        f"{tally.inputs} {result.kind} in {result.seconds:.0f} s ({rate:.0f} a second), "
        f"{tally.octets >> 20} MiB: {len(result.failures)} failures"
    )
    for outcome, count in sorted(tally.outcomes.items()):
        print(f"  {count:9} {outcome}")
    print(
        f"  slowest {1000 * tally.slowest:.0f} ms of {LIMIT:g} s "
        f"({result.kind}:{tally.slowest_index}); "
        f"resident memory grew by {tally.memory >> 20} MiB of {MEMORY >> 20} MiB"
    )


if __name__ == "__main__":
    sys.exit(main())
