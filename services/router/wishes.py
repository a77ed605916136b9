"""What a look at queue and fleet wants done."""

from typing import NamedTuple

from libs.common.contracts.jobs import Decision
from services.router.fleet import Hold, NodeView, Preload
from services.router.queue import Waiting


class Placement(NamedTuple):
    """A job and the slot it gets; `hold` is what its node has to reserve."""

    job: Waiting
    node: NodeView
    hold: Hold
    decision: Decision


class Loading(NamedTuple):
    """A copy of a model that is to be loaded before jobs come for it."""

    node: NodeView
    model: str
    order: Preload


class Pause:
    """Nothing yet: the look thinks about copies. It may go on now, or another look later."""


PAUSE = Pause()
