"""The simulated vCPU: it writes pages by its workload, and checks what it reads.

Memory is only ever accessed by numpy, in user mode: an access to a page that is paged out is a real
page fault of this process, and stops it until the page arrives.
"""

from __future__ import annotations

import math
import mmap
import time
from typing import Final

import numpy as np

from xen_save_helper.helper.hypervisors.interface import ShutdownReason
from xen_save_helper.helper.hypervisors.simulated import pattern, userfault, vcpu_info
from xen_save_helper.helper.hypervisors.simulated.kinds import UNLIMITED, Kind
from xen_save_helper.helper.hypervisors.simulated.layout import (
    BUCKETS_PER_OCTAVE,
    FAULT_BUCKETS,
    NOT_REGISTERED,
    P2M,
    PAGE_SIZE,
    RUNS,
)
from xen_save_helper.helper.hypervisors.simulated.pattern import Words
from xen_save_helper.helper.hypervisors.simulated.registers import Registers
from xen_save_helper.helper.hypervisors.simulated.shared import SharedMemory

STEP: Final = 0.005
"""Seconds from one step to the next, for a workload with a rate."""

IDLE_STEP: Final = 0.02

SWEEP: Final = 16
"""Pages of its sweep over all memory that the guest compares in a step."""

BATCH: Final = 512
"""Pages written in a step at most. A vCPU that fell behind its rate does not catch up."""

CHECKED_BEFORE_WRITE: Final = 64
"""Pages of a batch that are compared before they are written. The rest of a large batch is written
unchecked; the sweep over memory covers those too."""

FILL: Final = 4096
"""Pages built or verified before the sockets are served again."""


class Crash(Exception):
    """The guest found its memory or its device model wrong; the text says what."""


class VCPU:
    """A guest's vCPU. `registers` is None until it has any."""

    def __init__(self, shared: SharedMemory) -> None:
        self._shared = shared
        self._domain = shared.domain
        self._words = shared.words()
        self.memory_address = int(self._words.ctypes.data)
        """The address of pfn 0 in this process."""
        self.registers: Registers | None = None
        self._written_until = 0.0

    # -- building and starting ------------------------------------------------------------------

    def fill(self, registers: Registers, first: int, count: int) -> None:
        """Build pages from `first` on: write 0 of each."""
        shared = self._shared
        pfns = np.arange(first, first + count, dtype=np.uint64)
        shared.make_ready(first * PAGE_SIZE, count * PAGE_SIZE, writable=True)
        pattern.write(self._words, registers.seed, pfns, np.zeros_like(pfns))
        if first <= registers.vcpu_info < first + count:
            page = self._words[registers.vcpu_info]
            vcpu_info.write(page, registers.vcpu_info_version, self._domain.tsc_khz)
        shared.p2m[first : first + count] = P2M.POPULATED

    def start(self) -> None:
        """Start running from the current registers, with a step at once. Raises Crash."""
        registers = self._running()
        self._written_until = time.monotonic() - self._interval(registers)
        self._domain.first_step_at = 0.0
        self._domain.vcpu_info = registers.vcpu_info
        self._tick()

    def note_vcpu_info(self) -> None:
        """Count the page with the vcpu_info as dirty. Log-dirty mode does not see the hypervisor's
        own writes, which go on as long as the vCPU runs; it must stand still."""
        if self._domain.vcpu_info != NOT_REGISTERED:
            self._shared.writes[self._domain.vcpu_info] += np.uint32(2)

    # -- steps ----------------------------------------------------------------------------------

    @staticmethod
    def _interval(registers: Registers) -> float:
        """Seconds from one step to the next."""
        if registers.kind is Kind.IDLE:
            return IDLE_STEP
        return max(STEP, 1 / registers.rate)

    def next_step(self) -> float:
        """CLOCK_MONOTONIC time of the next step; in the past if the vCPU does not wait."""
        registers = self._running()
        if registers.kind is not Kind.IDLE and registers.rate == UNLIMITED:
            return 0.0
        return self._written_until + self._interval(registers)

    def step(self) -> None:
        """Compare some pages, write some. Raises Crash."""
        registers, domain = self._running(), self._domain
        now = time.monotonic()
        if domain.first_step_at == 0.0:
            domain.first_step_at = now
        self._tick()
        pfns, writes = registers.workload().targets(registers.writes, self._due(registers, now))
        drawn = len(pfns)
        here = pfns < np.uint64(registers.present)
        if not here.all():
            pfns, writes = pfns[here], writes[here]
        if registers.present:
            swept = (registers.sweep + np.arange(SWEEP)) % registers.present
            registers.sweep = int(swept[-1] + 1) % registers.present
            self.check(np.unique(swept).astype(np.uint64))
        self.check(pfns[:CHECKED_BEFORE_WRITE])
        self._write(registers, pfns, writes)
        registers.writes += drawn
        registers.steps += 1
        domain.steps = registers.steps

    def _due(self, registers: Registers, now: float) -> int:
        """The number of pages to write in this step."""
        if registers.kind is Kind.IDLE or registers.rate == UNLIMITED:
            self._written_until = now
            return BATCH
        due = math.floor((now - self._written_until) * registers.rate)
        if due > BATCH:
            self._written_until = now
            return BATCH
        self._written_until += due / registers.rate
        return due

    def _write(self, registers: Registers, pfns: Words, writes: Words) -> None:
        if not len(pfns):
            return
        self._bring_in(pfns[CHECKED_BEFORE_WRITE:])
        counters = self._shared.writes
        # Odd while the page changes, and different at the end: a reader sees at any moment that the
        # page is not what it was (Linux/x86 keeps the order of these stores).
        counters[pfns] += np.uint32(1)
        info = self._words[registers.vcpu_info, vcpu_info.WORDS]
        kept = info.copy() if registers.vcpu_info in pfns else None
        pattern.write(self._words, registers.seed, pfns, writes)
        if kept is not None:
            info[:] = kept
        counters[pfns] += np.uint32(1)

    def _tick(self) -> None:
        """Have the hypervisor write the time. Raises Crash if it cannot, or what it has written
        before is not there."""
        registers = self._running()
        try:
            found, now = vcpu_info.update(self._shared, self._words, registers.vcpu_info)
        except vcpu_info.NotThereError as error:
            raise Crash(str(error)) from error
        self._compare_version(registers, found)
        registers.vcpu_info_version = now

    def _compare_version(self, registers: Registers, found: int) -> None:
        if found != registers.vcpu_info_version:
            self._domain.memory_wrong += 1
            raise Crash(
                f"pfn {registers.vcpu_info:#x} is wrong: the time in the vcpu_info has version "
                f"{found}, want {registers.vcpu_info_version}"
            )

    # -- comparing ------------------------------------------------------------------------------

    def check(self, pfns: Words) -> None:
        """Compare these whole pages with what the registers say. Raises Crash."""
        if not len(pfns):
            return
        registers, domain = self._running(), self._domain
        self._bring_in(pfns)
        expected = registers.workload().writes_of(pfns, registers.writes)
        wrong = pattern.first_wrong(
            self._words, registers.seed, pfns, expected, (registers.vcpu_info, vcpu_info.WORDS)
        )
        registers.pages_checked += len(pfns)
        domain.pages_checked = registers.pages_checked
        if wrong is None:
            if registers.vcpu_info in pfns:
                page = self._words[registers.vcpu_info]
                self._compare_version(registers, vcpu_info.version_in(page))
            return
        domain.memory_wrong += 1
        pfn, write = int(pfns[wrong]), int(expected[wrong])
        if self._shared.p2m[pfn] == P2M.PAGED_OUT:
            raise Crash(f"pfn {pfn:#x} was paged out, and nobody serves paging any more")
        found = pattern.describe(self._words[pfn], registers.seed, pfn, write)
        raise Crash(f"pfn {pfn:#x} is wrong: expected write {write}, found {found}")

    def _bring_in(self, pfns: Words) -> None:
        """Touch those of `pfns` that are paged out, one by one, and measure how long each takes.

        Raises Crash for a page that cannot arrive.
        """
        # In this order, so that pages which a pager loaded before it ended are seen.
        paging = self._domain.paging
        states = self._shared.p2m[pfns]
        if (states == P2M.POPULATED).all():
            return
        if paging:
            for pfn in pfns[states == P2M.PAGED_OUT].tolist():
                if userfault.is_resident(self.memory_address + pfn * PAGE_SIZE):
                    # It has just arrived; the pager is about to say so.
                    continue
                before = time.perf_counter_ns()
                int(self._words[pfn, 0])
                self._count_fault(time.perf_counter_ns() - before)
        elif (states == P2M.PAGED_OUT).any():
            pfn = int(pfns[states == P2M.PAGED_OUT][0])
            raise Crash(f"pfn {pfn:#x} is paged out, and nobody serves paging")
        if (states == P2M.ABSENT).any():
            self._domain.memory_wrong += 1
            pfn = int(pfns[states == P2M.ABSENT][0])
            raise Crash(f"pfn {pfn:#x} is absent from the guest's memory")

    def _count_fault(self, nanoseconds: int) -> None:
        bucket = int(math.log2(max(1, nanoseconds)) * BUCKETS_PER_OCTAVE)
        self._domain.fault_histogram[min(bucket, FAULT_BUCKETS - 1)] += 1
        self._domain.faults += 1

    # -- giving memory back ---------------------------------------------------------------------

    def release(self, count: int) -> int:
        """Give back the last `count` pages (XENMEM_decrease_reservation), but none before its
        vcpu_info; how many it had."""
        registers = self._running()
        count = min(count, registers.present - registers.vcpu_info - 1)
        if count <= 0:
            return 0
        registers.present -= count
        registers.sweep = 0
        first = registers.present
        shared = self._shared
        held = int(np.count_nonzero(shared.p2m[first : first + count]))
        # A released page counts as dirty too.
        shared.writes[first : first + count] += np.uint32(2)
        # While paging is on, this waits until the pager has read the event. Only the pager changes
        # the state of pages that are paged out: it shows which ones need not be loaded any more.
        shared.memory.madvise(mmap.MADV_REMOVE, first * PAGE_SIZE, count * PAGE_SIZE)
        if self._domain.paging:
            states = shared.p2m[first : first + count]
            states[states == P2M.POPULATED] = P2M.ABSENT
        else:
            self.forget_released()
        self._domain.nr_pages -= held
        return count

    def forget_released(self) -> None:
        """Mark all pages that the guest has given back as absent, since no pager will."""
        if self.registers is not None:
            self._shared.p2m[self.registers.present : self.registers.pages] = P2M.ABSENT

    # -- states ---------------------------------------------------------------------------------

    def _running(self) -> Registers:
        if self.registers is None:
            raise Crash("the vCPU has no registers")
        return self.registers

    def crash(self, reason: str) -> None:
        """Stop for good; `reason` says why."""
        self._domain.crash = reason.encode("utf-8", "replace")[:511]
        self._domain.shutdown = ShutdownReason.CRASH

    @property
    def runs(self) -> bool:
        return not self._domain.paused and self._domain.shutdown == RUNS
