"""The loop: every caller's sequences, on their way through the lanes of a model.

Whoever wants something computed makes a request (`requests.py`) and hands it in; each lane has a thread, while there is work, that takes
requests, first come first served, and runs steps over all that it has taken (`lanes.py`). What callers put in goes through queues that
neither Ctrl-C nor the garbage collector can leave half done; everything else is done by the lanes' threads.

Requests for one node's lane or for that of all nodes are told apart when they are taken: few get all nodes together, many, where every
node has a copy of the weights, a node each (`modes.py`). Those that were begun stay where they are; the two kinds of lanes share the CPUs
step by step, in turns (`Turns`).

KV memory is reserved when a request is taken, for its ids and its longest answer, so that one that was begun can always end; the next
waits until there is room, and later ones behind it. A lane that computes nothing takes one in any case: alone it may have what there is.
"""

import atexit
import collections
import logging
import queue
import threading
import time
import weakref
from _thread import get_ident

from ..errors import ModelClosed
from .lanes import LaneLoop
from ..results import LaneStats, Stats
from .modes import faster, kv_budget, measure

log = logging.getLogger("numainfer")

_LOOKED_UP = 0.25  # seconds between two looks at how much memory there is, each of which takes half a millisecond
_SMALL = 64 << 20  # bytes of KV memory for which nobody looks, where a lane computes nothing else
_RECENT = 1.0  # seconds: who has taken something of a stream since then waits for more


class Loop:
    """All that is to be computed with a model, and the lanes that do.

    Parameters
    ----------
    runtime : Runtime
        Kept alive by the requests, not by the loop.
    """

    def __init__(self, runtime):
        self._runtime = weakref.ref(runtime)
        self._came = queue.SimpleQueue()  # requests, or lists of them
        # For the lanes' threads alone: what waits, in order of arrival, by the mode that was asked for.
        self._lock = threading.Lock()
        self._waiting = {mode: collections.deque() for mode in ("auto", "latency", "throughput")}
        self._lanes, self._of_nodes, self._mode = {}, None, "latency"
        self._budgets = {}  # by lane, when it was looked up, what sequences may fill, and what prefixes had then
        self._reserved = {}  # bytes of KV memory by request, of those that were begun and have not ended
        self._streams = {}  # answers that somebody takes piece by piece, whose prompt is read, and that have not ended
        _loops.add(self)

    # ---- for callers -------------------------------------------------------------------------------------------------

    def submit(self, requests):
        """Have requests computed, all in this order and before any that comes later. In a lane's own thread it is done at once.

        Raises
        ------
        RuntimeError
            No thread can be started; or this thread is in the midst of a step.
        """
        now = time.perf_counter()
        for request in requests:
            request.arrived = now
        own = self._mine()
        if own is not None:  # a logits processor's own call: nobody else could serve it
            own.run_here(requests)
            return
        self._came.put(requests)
        try:
            self._first().wake()
        except BaseException:
            for request in requests:
                request.cancelled = True
            raise

    def look_at(self, request):
        """See to a request that was cancelled, or of which something was taken."""
        runtime = request.runtime
        if runtime.closed or runtime.forked:
            request.end(None if request.cancelled else ModelClosed(f"the model {runtime.name} was closed"))
        elif request.lane is not None:
            request.lane.wake(request)
        else:
            self._came.put([request])
            self._first().wake()

    def is_mine(self):
        """Whether this thread is a lane's."""
        return self._mine() is not None

    def _mine(self):
        me = get_ident()
        for lane in tuple(self._lanes.values()):
            if lane.ident == me:
                return lane
        return None

    def left(self, request):
        """A request has ended: its memory is free for others."""
        self._streams.pop(request, None)
        if self._reserved.pop(request, None) is not None:
            for lane in tuple(self._lanes.values()):
                lane.nudge()

    # ---- lanes -------------------------------------------------------------------------------------------------------

    def _first(self):
        """The lane of all nodes: what comes in goes past it."""
        lane = self._runtime().engine.lane
        found = self._lanes.get(lane)
        if found is None:  # setdefault: two threads may come here
            found = self._lanes.setdefault(lane, LaneLoop(self, lane, 0, whole=True))
        return found

    def _node_lanes(self, runtime):
        """Those of single nodes; the first where there is one copy. Under the lock."""
        if self._of_nodes is None:
            found = []
            for i, lane in enumerate(runtime.node_lanes(), 1):
                found.append(self._lanes.setdefault(lane, LaneLoop(self, lane, i, whole=False)))
            self._of_nodes = found
        return self._of_nodes

    def lanes(self):
        """LaneLoops, that of all nodes first."""
        return [self._first(), *(lane for lane in self._of_nodes or () if not lane.whole)]

    # ---- for the lanes' threads --------------------------------------------------------------------------------------

    def runtime(self):
        """The Runtime, or None where nobody holds it any more."""
        return self._runtime()

    def sort_in(self, wait=True):
        """Put what came in where it waits; end what was cancelled there. In the midst of a step another lane's thread is not waited for: it
        may wait for the step."""
        if not self._came.qsize() or not self._lock.acquire(blocking=wait):
            return
        try:
            sweep = False
            while True:
                try:
                    requests = self._came.get_nowait()
                except queue.Empty:
                    break
                for request in requests:
                    if request.ended:
                        continue
                    if request.lane is not None:
                        request.lane.wake(request)
                    elif request.cancelled:
                        sweep = True
                        request.end()
                    else:
                        self._waiting[request.mode].append(request)
            if sweep:
                for mode, waiting in self._waiting.items():
                    self._waiting[mode] = collections.deque(request for request in waiting if not request.ended)
        finally:
            self._lock.release()

    @property
    def n_waiting(self):
        return sum(map(len, self._waiting.values()))

    def take(self, lane, runtime):
        """The next request for a lane, and what its mode is called; (None, None) if there is none for it now.

        One that is for others wakes them.
        """
        with self._lock:
            if not self.n_waiting:
                return None, None
            mode = self._choose_mode(runtime)
            queues = []
            if lane.whole:
                queues.append("latency")
            if self._waiting["throughput"] or mode == "throughput":
                of_nodes = self._node_lanes(runtime)
                if lane in of_nodes:
                    queues.append("throughput")
                else:
                    for other in of_nodes:
                        other.wake()
            if lane.whole if mode == "latency" else lane in self._of_nodes:
                queues.append("auto")
            elif self._waiting["auto"] and not lane.whole:
                self._first().wake()
            queues = [name for name in queues if self._waiting[name]]
            if not queues:
                return None, None
            name = min(queues, key=lambda name: self._waiting[name][0].arrived)
            if not self._may_take(lane, runtime, name, self._waiting[name][0]):
                return None, None
            request = self._waiting[name].popleft()
            self._reserved[request] = request.n_bytes
            return request, (mode if name == "auto" else name)

    def _may_take(self, lane, runtime, name, request):
        """Whether a lane may take a request now: others may deserve it more, or there is no room for it."""
        if not lane.n_active:
            self._budgets.pop(lane, None)
            if request.n_bytes <= _SMALL:
                return True
        elif name != "latency" and not lane.whole:
            # Its part of all that is not finished, so that the fastest lane does not take them all.
            unfinished = self.n_waiting - len(self._waiting["latency"]) + sum(other.n_active for other in self._of_nodes)
            if lane.n_active >= lane.lane.n_workers / sum(other.lane.n_workers for other in self._of_nodes) * unfinished:
                return False
        need = request.n_bytes + sum(n for r, n in list(self._reserved.items()) if r.lane is lane)
        short = need - self._budget(lane, runtime)
        if short > 0 and runtime.prefixes.bytes:
            runtime.prefixes.reclaim(short, lane.lane.nodes)
            self._budgets.pop(lane, None)
            short = need - self._budget(lane, runtime)
        return short <= 0 or not lane.n_active

    def _budget(self, lane, runtime):
        """Bytes of KV memory that a lane's sequences may fill, those included that they have; looked up now and then."""
        now, kept = time.monotonic(), runtime.prefixes.bytes
        when, budget, then = self._budgets.get(lane, (0.0, 0, 0))
        if now - when > _LOOKED_UP:
            budget, then = kv_budget(runtime, lane.lane) + sum(r.held_bytes for r in list(self._reserved) if r.lane is lane), kept
            self._budgets[lane] = now, budget, then
        return budget - max(kept - then, 0)

    def _choose_mode(self, runtime):
        """Where those go that leave it to us: "latency" or "throughput". Under the lock."""
        n_active = sum(not request.paused for request in list(self._reserved))  # those too that a lane has taken and not begun yet
        n = self.n_waiting + n_active
        if not self._waiting["auto"] or n < 2 or runtime.engine.placement.policy != "replicate":
            if n < 2:
                self._mode = "latency"
            return self._mode
        lanes = self._node_lanes(runtime)
        if len(lanes) > 1:
            if runtime.step_seconds is None:
                runtime.step_seconds = {"latency": measure(runtime, [None]), "throughput": measure(runtime, [own.lane for own in lanes])}
                log.info("seconds per step, by rows: %s", runtime.step_seconds)
            self._mode = faster(runtime.step_seconds, n, len(lanes), runtime.n_batch,
                                self._mode if n_active else "latency")
        return self._mode

    def begin_stream(self, request):
        """Somebody has the first piece of an answer, or will have it soon."""
        self._streams[request] = None
        if request.ended:
            self._streams.pop(request, None)

    def watched(self):
        """Whether somebody waits for the next piece of an answer."""
        now = time.monotonic()
        return any(not s.paused or now - s.taken < _RECENT for s in list(self._streams))

    def fail(self, error, broken=False):
        """End all that waits."""
        self.sort_in()
        with self._lock:
            for waiting in self._waiting.values():
                while waiting:
                    waiting.popleft().end(error, broken)

    @property
    def busy(self):
        """Whether a lane has something to compute."""
        return any(lane.n_active for lane in tuple(self._lanes.values()))

    def stats(self):
        """What runs where just now.

        Returns
        -------
        Stats
        """
        runtime, reserved = self._runtime(), list(self._reserved)
        names, lanes = [str(node.label) for node in runtime.engine.placement.nodes], []
        for lane in self.lanes():
            own = [request for request in reserved if request.lane is lane]
            lanes.append(LaneStats(tuple(names[i] for i in lane.lane.nodes), "latency" if lane.whole else "throughput", len(own),
                                   sum(request.paused for request in own), lane.rate, sum(request.held_bytes for request in own),
                                   proposed=lane.n_proposed, accepted=lane.n_accepted))  # fmt: skip
        return Stats(tuple(lanes), self.n_waiting + self._came.qsize(), self._mode, runtime.prefixes.stats())

    # ---- the end -----------------------------------------------------------------------------------------------------

    def wake_all(self):
        """Let the threads see that the model was closed; no new ones are started for that."""
        for lane in tuple(self._lanes.values()):
            lane.nudge()

    def end_threads(self):
        """Let the threads end in the midst of what they do, and wait for them; who waits for requests goes on waiting."""
        runtime = self._runtime()
        if runtime is not None and not runtime.forked:
            for lane in tuple(self._lanes.values()):
                lane.finish(1.0)


_loops: "weakref.WeakSet[Loop]" = weakref.WeakSet()


@atexit.register
def _end_threads():
    """Before the interpreter ends: it would take the ground from under threads that run on."""
    for loop in list(_loops):
        loop.end_threads()
