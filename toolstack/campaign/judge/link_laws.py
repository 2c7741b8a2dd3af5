"""What must be true of a postcopy whose last pages have a link of their own.

The link itself loses nothing: whatever happens to its connections, each page comes once, and as it
was sent. Pages are lost only with one of the two processes that have them in hand; and then the
source keeps the guest, suspended and under a name that says so, until a person has looked.
"""

from __future__ import annotations

from collections.abc import Iterator

from xen_save_helper.ipc_schema.faults.points import Side, Who
from xen_save_helper.toolstack.campaign.evidence import NAME, Mode, Outliving, Scene
from xen_save_helper.toolstack.campaign.judge.case import HERE, THERE, Case
from xen_save_helper.toolstack.campaign.judge.laws import WAITING, places


def linked(case: Case) -> Iterator[str]:
    """Yield a line for each thing that is wrong."""
    if case.evidence.mode is not Mode.LINK:
        return
    evidence = case.evidence
    for when, scene in (
        *(("its end", scene) for scene in evidence.ends),
        ("recover", evidence.recovered),
    ):
        yield from (f"{what} after {when}" for what in _idle(case, scene))
    for side, left in evidence.last.outliving.items():
        yield from (f"in the end there is a {one} at the {side.value}" for one in left)
    yield from _of_the_link_alone(case)
    if case.pages_lost:
        yield from _lost(case)


def _idle(case: Case, scene: Scene) -> Iterator[str]:
    """A process that waits for one that is dead does so for a person; one that has nothing to wait
    for has ended. What a dead one leaves is a word for that person."""
    servers, pagers = (scene.outliving.get(side, ()) for side in (HERE, THERE))
    for pager in filter(_alive, pagers):
        if any(map(_alive, servers)) or not case.pages_lost or pager.left == 0:
            yield f"a {pager} waits"
    # Of a controller that has died, `recover` says whether the guest is to run here.
    names = {*WAITING, NAME} if case.dead(HERE) else WAITING
    waits = any(
        guest.state == "suspended" and guest.name in names for guest in scene.places[HERE].guests
    )
    for server in filter(_alive, servers):
        if not waits:
            yield f"a {server} waits for nobody"
    # So does the copy of a receiver that has died.
    copies = case.dead(THERE) and scene.places[THERE].guests
    for side_waits, those in ((waits, servers), (waits or copies, pagers)):
        for dead in (one for one in those if not one.alive):
            if not side_waits:
                yield f"there is what a {dead} has left, and no guest waits for that"


def _alive(one: Outliving) -> bool:
    return one.alive


def _of_the_link_alone(case: Case) -> Iterator[str]:
    """Nobody need do anything about connections that break, stand still or bring other octets."""
    effects = [one for one in case.fired if one.fault.point.who is not Who.TUNNEL]
    if case.fired and not effects and (case.evidence.persons or case.evidence.recoveries):
        done = ", ".join(one.command for one in (*case.evidence.recoveries, *case.evidence.persons))
        yield f"the link alone was disturbed, and it took {done}"


def _lost(case: Case) -> Iterator[str]:
    """The only guest that can live is the one here."""
    evidence = case.evidence
    kept = [
        guest
        for guest in evidence.recovered.places[HERE].guests
        if guest.name in {NAME, *WAITING} and guest.state in {"running", "suspended"}
    ]
    if not kept:
        yield f"its last pages are lost, and the source has let it go: {places(evidence.recovered)}"
    there = evidence.last.places[Side.DESTINATION].guests
    if there:
        yield f"its last pages are lost, and yet it stays there: {places(evidence.last)}"
