"""A save helper that only makes callbacks: the helper's end of the real channel, timed."""

from __future__ import annotations

import argparse
import json
import os
import time

from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.channels.zmq_channel import ZmqChannel
from xen_save_helper.ipc_schema.channel.authentication import SECRET_SIZE

ROUNDS = 1000


def times_of(channel: ZmqChannel, name: str, **fields: int) -> list[float]:
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        channel.call(name, **fields)
        times.append(time.perf_counter() - started)
    return times


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("result")
    parser.add_argument("processor", type=int)
    parser.add_argument("--connect", required=True)
    parser.add_argument("--secret-fd", type=int, required=True)
    arguments, _rest = parser.parse_known_args()
    os.sched_setaffinity(0, {arguments.processor})
    secret = os.read(arguments.secret_fd, SECRET_SIZE)
    channel = ZmqChannel(arguments.connect, secret)
    channel.hello()
    channel.wait_for_start(arguments.secret_fd, 10)
    abort = Abort(lifeline=arguments.secret_fd)
    channel.attend(abort)
    with abort:
        stats = {"iteration": 1, "total_written": 1024, "dirty_count": 50}
        times = {
            "sync": times_of(channel, "precopy_policy", **stats),
            "async": times_of(channel, "suspend"),
        }
        with open(arguments.result, "w", encoding="utf-8") as file:
            json.dump(times, file)
        channel.call("complete", retval=0, errnoval=0)
        channel.close()


if __name__ == "__main__":
    main()
