"""Giving up: everything that can end a save before its time, and how a blocked write learns of it.

A save is one long straight run of blocking calls, and its error path (log-dirty off, guest usable
again) must run whatever happens. So an abort does what `save_signal_handler` of libxl's helper
does: it puts a descriptor that cannot be written in the place of the stream, and the next write
fails with EBADF. A write that is blocked at that moment is interrupted after the replacement, so
that its retry meets the new descriptor.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable

from xen_save_helper.helper.waiting import WaitLog
from xen_save_helper.helper.watchdog import Watchdog
from xen_save_helper.ipc_schema.channel import waits
from xen_save_helper.ipc_schema.channel.messages import XentoollogLevel
from xen_save_helper.ipc_schema.channel.waits import BUFFERED, Patience
from xen_save_helper.ipc_schema.hints import Final, Self

_INTERRUPT = signal.SIGUSR1
"""Wakes the saving thread out of a blocked system call; its handler does nothing."""

_NOTABLE = 64
"""Bytes that count as progress of a stream; fewer may be the one that reports a signal."""

_NUDGES = 4
"""A write or read that takes longer than this part of the stall limit is interrupted, to see how
far it has come."""

SAVE_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
"""Signals that ask a save to give up. A restore keeps the default dispositions: they kill it."""


def _nothing(_signum: int, _frame: object) -> None:
    """A Python-level handler, so that the C-level one writes to the wake-up descriptor."""


_LOOK_AWAY_SECONDS: Final = 5.0
"""The watcher needs no time for it; a wait has an end all the same."""


class Abort:
    """Watches, from a thread of its own, for reasons to give up: a signal, the controller's death
    (the other end of `lifeline` closed), a stream that stands still, and `watch`ed descriptors.

    Make and enter it in the main thread, before any other thread starts: while it is entered,
    `signals` are blocked in all threads but the watcher. `stall_limit` is in seconds, 0 for none;
    `admission` (0: none) replaces it until a receiver has begun to take the stream. The `watchdog`
    may ask for the abort too, and is told of all activity.
    """

    def __init__(
        self,
        *,
        lifeline: int = -1,
        signals: frozenset[signal.Signals] = SAVE_SIGNALS,
        stall_limit: float = 0.0,
        admission: float = 0.0,
        watchdog: Watchdog | None = None,
    ) -> None:
        self.reason = ""
        self.errnoval = 0
        self.lost = False
        """The controller is gone: nobody hears what the helper says."""
        self._lifeline = lifeline
        self._signals = signals
        self._stall_limit = stall_limit
        self._admission = admission
        self._watchdog = watchdog
        self._lock = threading.Lock()
        self._requested = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._watched: dict[int, Callable[[], None]] = {}
        self._stream = -1
        self._reading = False
        self._unusable = -1
        self._progressed: int | None = None
        """How often there was progress; None while the stall clock stands still."""
        self._times = 0
        self._moved: Callable[[], int] | None = None
        self._moved_so_far = 0
        self._patience = Patience(stall_limit, time.monotonic())
        """Counts the time without progress; `_limit` says how much is too much."""
        self._since: int | None = None
        self._nudged = False
        self._tell: Callable[[XentoollogLevel, str], bool] | None = None
        self._wait_log: WaitLog | None = None
        self._stopping = False
        self._outlives = False
        self._looks_away = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="abort watcher", daemon=True)
        if watchdog is not None:
            watchdog.when_quiet(self.request)

    def __enter__(self) -> Self:
        self._saver = threading.get_ident()
        # Blocked before there are handlers: nobody would see one that ran now.
        signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
        self._old_handlers = {s: signal.signal(s, _nothing) for s in (*self._signals, _INTERRUPT)}
        self._old_wakeup = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stopping = True
        self._wake()
        self._thread.join()
        signal.set_wakeup_fd(self._old_wakeup)
        # Old handlers first: a signal that is pending now gets the disposition it would have had.
        for signum, handler in self._old_handlers.items():
            signal.signal(signum, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._signals)
        with self._lock:
            for fd in (self._requested, self._wake_read, self._wake_write, self._unusable):
                if fd >= 0:
                    os.close(fd)
            self._requested = self._unusable = self._stream = -1

    @property
    def requested(self) -> bool:
        return self.errnoval != 0

    def fileno(self) -> int:
        """A descriptor that polls readable once there is an abort."""
        return self._requested

    def check(self) -> None:
        """Raise OSError with the abort's errno (ECANCELED, ETIMEDOUT, EPIPE) once there is one."""
        if self.errnoval:
            raise OSError(self.errnoval, self.reason)

    def request(self, errnoval: int, reason: str, *, lost: bool = False) -> None:
        """Ask for the abort, from any thread; the first reason counts. `lost`: the controller is
        gone too."""
        with self._lock:
            self.lost = self.lost or lost
            if self.errnoval:
                return
            self.reason, self.errnoval = reason, errnoval
            if self._requested >= 0:
                os.eventfd_write(self._requested, 1)
            if self._stream >= 0:
                # In this order: the retry of an interrupted write must meet the new descriptor.
                os.dup2(self._unusable, self._stream, inheritable=False)
                if threading.get_ident() != self._saver:
                    signal.pthread_kill(self._saver, _INTERRUPT)

    def guard_stream(
        self, fd: int, *, reading: bool = False, moved: Callable[[], int] | None = None
    ) -> None:
        """Register the descriptor that an abort makes unusable, for writing or (`reading`, in a
        restore) for reading. Starts the stall clock. An earlier abort takes effect at once.

        `moved` is for work on the stream that cannot always call `progress`: it returns how many
        bytes the finished system calls have moved, and is called from the watcher's thread while
        the stream is guarded.
        """
        with self._lock:
            self._reading = reading
            self._moved = moved
            if self._tell is not None:
                self._wait_log = WaitLog(self._tell, reading=reading)
            mode = os.O_WRONLY if reading else os.O_RDONLY
            self._unusable = os.open("/dev/null", mode | os.O_CLOEXEC)
            if self.errnoval:
                os.dup2(self._unusable, fd, inheritable=False)
            self._stream = fd
        self.progress()
        self._wake()

    def tell_of_waits(self, tell: Callable[[XentoollogLevel, str], bool]) -> None:
        """Report a stream that stands still by `tell(level, text)`, from the watcher's thread; it
        returns whether that was possible. To be called before a stream is guarded."""
        self._tell = tell

    def without_stall_limit(self) -> None:
        """Drop the limit, for a stream whose progress cannot be seen; to be called before it is
        guarded. This stops the watchdog too, which would see nothing done either."""
        self._stall_limit = 0.0
        if self._watchdog is not None:
            self._watchdog.stop()

    def outlive(self) -> None:
        """The controller is done, and will go: that ends nothing from here on, and nobody is there
        to be told that the process hangs. The descriptors by which it was watched may be closed
        once this has returned: another one with the number of one that is watched would stay open
        for as long as it is."""
        self._outlives = True
        self._wake()
        self._looks_away.wait(_LOOK_AWAY_SECONDS)
        self.release_stream()
        if self._watchdog is not None:
            self._watchdog.stop()

    def release_stream(self) -> None:
        """Leave the stream alone from here on: it is written (or read) to its end."""
        with self._lock:
            self._stream = -1
            self._moved = None
            if self._unusable >= 0:
                os.close(self._unusable)
                self._unusable = -1

    def progress(self) -> None:
        """Restart the stall clock: a write (or read) of the stream was completed."""
        self._times += 1
        self._progressed, self._nudged = self._times, False
        self.alive()

    def idle(self) -> None:
        """Stop the stall clock until the next `progress`: the stream is not in use (a callback
        waits for its answer)."""
        self._progressed = None
        self.alive()

    def alive(self) -> None:
        """Show the watchdog that something was done, for the stream or not."""
        if self._watchdog is not None:
            self._watchdog.alive()

    def take_stood_still(self) -> float:
        """The seconds that the process was stopped since the last call."""
        return 0.0 if self._watchdog is None else self._watchdog.take_stood_still()

    def watch(self, fd: int, ready: Callable[[], None]) -> None:
        """Have the watcher thread call `ready` once at its start, and whenever `fd` polls readable
        (ZeroMQ's descriptors are edge-triggered, and silent until first asked). To be called before
        entering."""
        self._watched[fd] = ready

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"\0")
        except BlockingIOError:
            pass  # it is full of wake-ups already

    def _watch(self) -> None:
        try:
            self._look_out()
        except BaseException as bug:
            # Without the watcher nobody sees a signal, or a stream that stands still.
            sys.excepthook(type(bug), bug, bug.__traceback__)
            self._looks_away.set()
            self.request(errno.EIO, f"the abort watcher failed: {bug!r}")

    def _look_out(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._signals)
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        for fd, ready in self._watched.items():
            poll.register(fd, select.POLLIN)
            ready()
        if self._lifeline >= 0:
            poll.register(self._lifeline, 0)  # POLLHUP only: what it carries is not for us
        while not self._stopping:
            for fd, events in poll.poll(self._poll_milliseconds()):
                if events & select.POLLNVAL:
                    poll.unregister(fd)  # its owner has closed it
                elif fd == self._wake_read:
                    self._take_signals()
                elif fd == self._lifeline:
                    poll.unregister(fd)
                    if not self._outlives:
                        self.request(errno.EPIPE, "the controller died", lost=True)
                else:
                    self._watched[fd]()
            if self._outlives and not self._looks_away.is_set():
                for fd in (self._lifeline, *self._watched):
                    # The lifeline may be gone already.
                    with contextlib.suppress(KeyError):
                        poll.unregister(fd)
                self._looks_away.set()
            self._check_stall()

    def _take_signals(self) -> None:
        for signum in os.read(self._wake_read, 4096):
            if signum in self._signals:
                self.request(errno.ECANCELED, f"{signal.Signals(signum).name} received")

    def _poll_milliseconds(self) -> float | None:
        soonest = self._soonest_limit()
        if self._stream < 0 or not soonest:
            return None
        return max(self._patience.wait, 0.01) * 1000

    def _has_begun(self) -> bool:
        """Whether the receiver has taken more of the stream than buffers on the way can hold."""
        return not self._admission or self._moved_so_far > BUFFERED

    def _limit(self) -> float:
        """Seconds that the stream may stand still at this point; 0 for ever."""
        if not self._stall_limit:
            return 0.0
        return self._stall_limit if self._has_begun() else self._admission

    def _soonest_limit(self) -> float:
        """Seconds after which a stream that stands still is given up, or reported by us or by our
        controller; 0 for never."""
        limit = 0.0 if self.errnoval else self._limit()
        limits = (limit, waits.PERIOD if limit or self._wait_log is not None else 0.0)
        return min(filter(None, limits), default=0.0)

    def _has_moved(self) -> bool:
        with self._lock:
            if self._moved is None:
                return False
            moved = self._moved()
        if moved - self._moved_so_far < _NOTABLE:
            return False
        self._moved_so_far, self._nudged = moved, False
        self.alive()
        return True

    def _check_stall(self) -> None:
        stream, since = self._stream, self._progressed
        soonest = self._soonest_limit()
        if stream < 0 or not soonest:
            return
        now = time.monotonic()
        if since is None or self._has_moved() or since != self._since:
            self._since = since
            self._patience.restart(now)
        self._patience.look(now)
        quiet = self._patience.spent
        if self._wait_log is not None:
            self._wait_log.look(quiet, lambda: self._is_ready(stream))
        if since is None or quiet < soonest / _NUDGES:
            return
        with self._lock:
            if not self._nudged:
                # One long write or read may be slow, not stuck: interrupted, it says how far it has
                # come.
                self._nudged = True
                signal.pthread_kill(self._saver, _INTERRUPT)
                return
        limit = self._limit()
        if not limit or quiet < limit:
            return
        # If the stream is ready, its peer did not hold it up: we are the slow ones.
        if not self._is_ready(stream) and self._progressed == since:
            what = "received" if self._reading else "taken by the other side"
            reason = f"the stream stands still: nothing {what} for {limit} s"
            if not self._has_begun():
                reason = f"the receiver has not begun to take the stream for {limit} s"
            self.request(errno.ETIMEDOUT, reason)

    def _is_ready(self, stream: int) -> bool:
        """Whether the other side of the stream has something to read, or room."""
        poll = select.poll()
        poll.register(stream, select.POLLIN if self._reading else select.POLLOUT)
        return bool(poll.poll(0))
