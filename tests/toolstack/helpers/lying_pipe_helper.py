#!/usr/bin/env python3
"""A save helper on libxl's pipes that breaks the protocol as LYING_HOW says."""

import os
import struct
import sys
import time


def say(body: bytes) -> None:
    os.write(1, struct.pack("=H", len(body)) + body)


match os.environ["LYING_HOW"]:
    case "unknown number":
        say(struct.pack("=H", 99))
    case "malformed body":
        say(struct.pack("=HIII", 1, 1, 0, 1000))
    case "no body":
        os.write(1, struct.pack("=H", 0))
    case "another operation":
        say(struct.pack("=HQQ", 9, 1, 2))
    case "impatient":
        say(struct.pack("=H", 3))
        say(struct.pack("=H", 3))
    case "not provided":
        say(struct.pack("=H", 5))
    case "half a message":
        os.write(1, struct.pack("=HH", 100, 3))
        os.close(1)
    case "half a message at its end":
        os.write(1, struct.pack("=HH", 100, 3))
        sys.exit(0)
    case "hangs up":
        os.close(1)
    case "does not complete":
        sys.exit(0)
    case "deaf":
        os.close(0)
        say(struct.pack("=H", 3))
    case "completes and stays":
        say(struct.pack("=Hii", 10, 0, 0))
        os.read(0, 4)
time.sleep(60)
