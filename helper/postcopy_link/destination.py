"""The restoring helper's side: it connects to the sender's page server, and outlives its `xl`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from xen_save_helper.helper.postcopy_link import last_word, record
from xen_save_helper.helper.postcopy_link.curve import Keys, TunnelClient
from xen_save_helper.helper.postcopy_link.watched import Watched, Work
from xen_save_helper.helper.watchdog import die_with_parent
from xen_save_helper.ipc_schema.causes import words_of
from xen_save_helper.ipc_schema.control import Role

if TYPE_CHECKING:
    from xen_save_helper.helper.abort import Abort
    from xen_save_helper.helper.channels.channel import Channel
    from xen_save_helper.helper.hypervisors.interface import Bitmap, Domain
    from xen_save_helper.helper.job import Job, PostcopyProgress, RestoreResults
    from xen_save_helper.ipc_schema.streams.postcopy_offer import PostcopyOffer
    from xen_save_helper.ipc_schema.trace import Trace


class Pager:
    """Of a restore that may become a postcopy, and go on without its controller."""

    def __init__(
        self, job: Job, channel: Channel, abort: Abort, trace: Trace, step: Callable[[str], None]
    ) -> None:
        """`step` is that of `seams.Seams`."""
        self._step = step
        self._job = job
        self._channel = channel
        self._abort = abort
        self._trace = trace
        self._tunnel: TunnelClient | None = None
        self._watched: Watched | None = None
        self._offer: PostcopyOffer | None = None
        self._record: Path | None = None

    def offered(self, offer: PostcopyOffer, domain: Domain) -> None:
        """Connect to the page server, and say whether this domain can be paged."""
        self._step("connects")
        refusal = ""
        try:
            domain.mem_paging_enable().close()
        except OSError as error:
            refusal = error.strerror or str(error)
        self._offer = offer
        keys = Keys(offer.client_key.encode(), offer.client_secret.encode())
        self._tunnel = TunnelClient(offer.address, offer.port, keys, offer.server_key.encode())
        self._trace.event("page_server", address=offer.address, port=offer.port, refusal=refusal)
        os.write(self._tunnel.fileno(), f"{refusal}\n".encode())

    def ready(self) -> None:
        """Say that what the last record which came ahead wants is done."""
        assert self._tunnel is not None
        os.write(self._tunnel.fileno(), b"\n")

    @property
    def connected(self) -> bool:
        return self._tunnel is not None

    def fileno(self) -> int:
        assert self._tunnel is not None
        return self._tunnel.fileno()

    def step(self, name: str) -> None:
        self._step(name)

    def leave(
        self, results: RestoreResults, progress: Callable[[], PostcopyProgress], missing: Bitmap
    ) -> None:
        """Tell the controller that the domain is restored, and go on without it. Raises
        ChannelError."""
        assert self._tunnel is not None
        self._progress = progress
        gfns = {"store_gfn": results.store_gfn, "console_gfn": results.console_gfn}
        self._channel.tell("restore_results", **gfns)
        self._trace.event("complete", retval=0, errnoval=0)
        self._channel.call("complete", retval=0, errnoval=0)
        self._abort.outlive()
        self._channel.leave()
        if self._job.steered is not None:
            self._job.steered.close()
        die_with_parent(0)
        os.setsid()
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        os.close(null)
        # The stream's other end waits for nobody here.
        request = self._job.request
        for fd in (request.io_fd, request.back_fd):
            if fd >= 0:
                os.close(fd)
        self._trace.event("pager")
        hypervisor, domid = request.hypervisor, request.domid
        work = Work(Role.PAGER, hypervisor, domid, progress, self._tunnel, self._abort, self._moved)
        self._watched = Watched(work, self._job.control, self._trace)
        self._put_on_record(missing)
        last_word.say(last_word.GOES_ON, self._job.parent)
        self._step("takes-over")

    def _put_on_record(self, missing: Bitmap) -> None:
        """For another pager, if this one is killed."""
        assert self._watched is not None
        assert self._offer is not None
        if not self._watched.name:
            return
        request, offer = self._job.request, self._offer
        found = record.Record(
            hypervisor=request.hypervisor,
            domid=request.domid,
            address=offer.address,
            port=offer.port,
            server_key=offer.server_key,
            client_key=offer.client_key,
            client_secret=offer.client_secret,
        )
        path = record.path_of(self._job.control, self._watched.name)
        try:
            record.write(path, found, missing)
        except OSError as error:
            self._trace.event("no_record", error=str(error))
        else:
            self._record = path

    def _moved(self, address: str, port: int) -> None:
        if self._record is not None:
            record.moved(self._record, address, port)

    def close(self) -> None:
        error = sys.exception()
        if self._record is not None:
            record.remove(self._record)
        if self._watched is not None:
            self._watched.close(words_of(error) if error and self._progress().left else "")
        if self._tunnel is None:
            return
        if error is None:
            self._tunnel.close()
        else:
            self._tunnel.give_up()
