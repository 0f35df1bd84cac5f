"""Placement: which worker an attempt goes to.

Imports the floor and this room. A worker that rests is always preferred. Behind others goes only what is
known to be quick, so that what waits in a worker's queue waits milliseconds; what that estimate gets wrong,
the pool takes back.
"""

from headrace.runtime.model.attempt import Attempt
from headrace.runtime.pool.link import BYTES_MAX, ITEMS_MAX, Link

# An item that is estimated above QUEUE_S is never queued behind another, and a worker is given no more than
# LOAD_MAX_S in all. A function's first item has the estimate UNKNOWN_S, so it has a worker to itself.
QUEUE_S = 0.005
LOAD_MAX_S = 0.010
URGENT_WAIT_S = 0.002
UNKNOWN_S = 1.0
ESTIMATE_MIN_S = 5e-6
ESTIMATE_WEIGHT = 0.2
FUNCTIONS_MAX = 10_000


class Placement:
    """The workers that take attempts, and what is known of how long functions take.

    `regular` take any attempt, `burst` urgent ones only. A link that is closing may still be among them.
    """

    def __init__(self) -> None:
        self.regular: list[Link] = []
        self.burst: list[Link] = []
        self._idle: dict[int, Link] = {}
        self._estimates: dict[str, float] = {}
        self._turn = 0

    def add(self, link: Link) -> None:
        """A new worker, at rest."""
        (self.burst if link.burst else self.regular).append(link)
        self.rest(link)

    def remove(self, link: Link) -> None:
        """Nothing is placed on this worker any more; harmless when it was removed before."""
        self._idle.pop(link.number, None)
        among = self.burst if link.burst else self.regular
        if link in among:
            among.remove(link)

    def rest(self, link: Link) -> None:
        """The worker holds nothing."""
        if not link.burst:
            self._idle[link.number] = link

    def stir(self, link: Link) -> None:
        """The worker is about to hold something, or is not to be given anything."""
        self._idle.pop(link.number, None)

    @property
    def resting(self) -> bool:
        """Whether a worker holds nothing and takes attempts."""
        return bool(self._idle)

    def estimate(self, function: str) -> float:
        """Seconds that one invocation may take."""
        return self._estimates.get(function, UNKNOWN_S)

    def learn(self, function: str, duration_s: float) -> None:
        """An invocation took so long: the estimate moves towards it."""
        known = self._estimates.get(function)
        if known is None:
            if len(self._estimates) >= FUNCTIONS_MAX:
                self._estimates.clear()
            known = duration_s
        known += ESTIMATE_WEIGHT * (duration_s - known)
        self._estimates[function] = known if known > ESTIMATE_MIN_S else ESTIMATE_MIN_S

    def choose(self, attempt: Attempt, estimate_s: float) -> Link | None:
        """The worker for an attempt, or None: one at rest, else in turn one with a short queue, else for an
        urgent attempt
        a burst worker at rest."""
        if self._idle:
            return next(iter(self._idle.values()))
        if estimate_s <= QUEUE_S:
            bytes_max = BYTES_MAX - len(attempt.payload)
            load_max = URGENT_WAIT_S if attempt.urgent else LOAD_MAX_S - estimate_s
            links = self.regular
            turn, count = self._turn, len(links)
            for _ in range(count):
                turn = turn + 1 if turn + 1 < count else 0
                link = links[turn]
                if (
                    link.load_s <= load_max
                    and len(link.held) < ITEMS_MAX
                    and link.held_bytes <= bytes_max
                    and not link.closing
                    and not link.revoked
                ):
                    self._turn = turn
                    return link
        if attempt.urgent:
            for link in self.burst:
                if not link.held and link.open:
                    return link
        return None
