"""The backend on Ray Serve: the same application in one replica per GPU, or per processor, of a cluster.

Each replica has the networks and an `Engine` of its own. The slices are in one actor, which all replicas ask through
`RayStore`, so that a client may talk to any of them. Ray Serve's proxies pass requests on and start and stop replicas
by load; `_ProxyErrors` makes the proxies' own errors into answers that clients understand.
"""

from __future__ import annotations

import logging
import random
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from SDFSMISLib.console import one_line, print_status, waiting
from SDFSMISLib.errors import InputError
from SDFSMISLib.model.memory import collect_rarely
from SDFSMISLib.server.access import ListeningAddress, on_stdin_closed
from SDFSMISLib.server.schema import ApiError
from SDFSMISLib.server.settings import ServerLimits, ServeSettings, log_event
from SDFSMISLib.server.store import Key, MemoryStore, MissingSlices
from SDFSMISLib.wire import PROTOCOL, PROTOCOL_HEADER

try:
    from SDFSMISLib.cohort.ray_pool import connected, nodes  # isort: skip  (sets what Ray prints, before Ray loads)
    import ray
    from ray import serve
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except (ImportError, InputError) as error:
    raise InputError('The engine ray needs Ray, which is not here; run: pip install "sdfsmis[serve,ray]"') from error

__all__ = ["RayStore", "ReplicaPlan", "middlewares", "plan_replicas", "run_ray_server"]

APPLICATION = "sdfsmis"
CONTROLLER = ("SERVE_CONTROLLER_ACTOR", "serve")  # name and namespace of Ray Serve's own actor
STORE_ACTOR = ("sdfsmis-slices", "sdfsmis")  # name and namespace
EXTRA_REQUESTS = 64  # that a replica answers beside its runs
HEALTH_SECONDS = 2.0  # between two health checks; after three failures a replica is replaced
GRACE_SECONDS = 10.0  # for active runs to end when their replica is stopped
SLOW_START_SECONDS = 60.0  # after which the user is told what a replica waits for
MAX_STARTS = 2  # attempts to start a replica
DESCRIBE_SECONDS = 60.0  # timeout of the call that asks the first replica what it serves
STORE_SECONDS = 30.0  # timeout of a call to the store, a restart of its actor included
RETRY_SECONDS = 2
SLICES_PER_CALL = 16  # that are fetched from the store together, so that a large scan does not fill the object store
POLL_SECONDS = 0.5  # between two checks whether to stop; on Windows a signal does not wake a longer wait

QUIET = {"log_level": "ERROR", "enable_access_log": False}
PROXY_VARIABLES = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": f"{__name__}.middlewares"}
QUIET_PORTS = range(20000, 30000)  # systems give outgoing connections higher ones
RAY_SERVE_PATHS = "/-/"  # by which load balancers check a proxy

# A run keeps a replica busy, so a second one at the same time is worth another replica. Replicas stay for a while: a
# correction follows soon, and finds the latents of its scan in the replica that computed them.
SCALING = {"target_ongoing_requests": 1, "look_back_period_s": 15, "upscale_delay_s": 5, "downscale_delay_s": 600}


def quiet_port(host: str) -> int:
    """A free port that no outgoing connection gets by itself: Ray binds it seconds later, and makes many of those.

    >>> 20000 <= quiet_port("127.0.0.1") < 30000
    True
    """
    family = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0][0]
    for port in random.SystemRandom().sample(QUIET_PORTS, 100):
        with socket.socket(family) as trial, suppress(OSError):
            trial.bind((host, port))
            return port
    return 0


def run_ray_server(settings: ServeSettings) -> int:
    """Serve on Ray until stopped; the exit code, 0.

    The cluster is the one that RAY_ADDRESS names, or that runs on this machine, and stays when the backend ends; if
    there is none, one is started on this machine. All nodes have sdfsmis, and the model and the certificate under the
    same paths. Clients connect to `settings.host` and the same port of the head node or of any node with a replica;
    that node passes the request on to a replica of any node. A client whose node is lost needs the address of another.

    Without a token of Ray's own (RAY_AUTH_MODE), Ray trusts everybody who reaches its ports: a cluster belongs behind
    a firewall. If the backend is killed, its replicas stay on a cluster that it joined, without slices; `serve
    shutdown` ends them.

    Raises:
        InputError: as `run_server`; also if Ray is not installed or cannot be reached, something else serves on the
            cluster, or the cluster lacks the requested device.
    """
    address = ListeningAddress.open(replace(settings, port=settings.port or quiet_port(settings.host)))
    address.listener.close()  # the port is free; Ray Serve binds it itself
    with connected():
        _check_not_serving()
        plan = plan_replicas(nodes(), settings.device)
        with store_actor(settings.limits), _ray_serve(settings, address, plan) as handle:
            model, seconds_per_slice = handle.describe.remote().result(timeout_s=DESCRIBE_SECONDS)
            with _stop_event(settings) as stopped:
                address.announce(f"{model}, with room for {plan.replicas} replicas", seconds_per_slice)
                while not stopped.wait(POLL_SECONDS):
                    pass
    return 0


@dataclass(frozen=True)
class ReplicaPlan:
    """How many replicas fit on a cluster at most, and the GPUs (0 or 1) of each; each has one processor."""

    replicas: int
    gpus: int

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"


def plan_replicas(nodes: Sequence[tuple[int, int]], device: str) -> ReplicaPlan:
    """The replicas that fit on a cluster.

    Args:
        nodes: processors and GPUs of each node.
        device: `auto` (GPUs if any node has one), `cpu` or `cuda`.

    Raises:
        InputError: if none fits, or `device` is another one.

    Example:
        >>> plan_replicas([(16, 2), (8, 0)], "auto")
        ReplicaPlan(replicas=2, gpus=1)
        >>> plan_replicas([(16, 2), (8, 0)], "cpu")
        ReplicaPlan(replicas=24, gpus=0)
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(
            f"The device {device} was given; on Ray auto, cpu and cuda are accepted, and each replica has one GPU."
        )
    with_gpu = sum(min(cpus, gpus) for cpus, gpus in nodes)
    if with_gpu and device != "cpu":
        return ReplicaPlan(with_gpu, 1)
    if device == "cuda":
        raise InputError("The device cuda was requested, but no node of the Ray cluster has a GPU; use auto or cpu.")
    processors = sum(cpus for cpus, _ in nodes)
    if not processors:
        raise InputError("No node of the Ray cluster has processors to work on; start one with ray start.")
    return ReplicaPlan(processors, 0)


@serve.ingress()
class BackendReplica:
    """Ray Serve's deployment: the application with networks of its own, and the slices in the shared `RayStore`.

    Latents, the bound on active runs and the metrics are each replica's own. Unlike in a single process, a client that
    reads slowly does not pause its run: Ray Serve buffers the results.
    """

    def __init__(self, settings: ServeSettings, tokens: Sequence[str]) -> None:
        collect_rarely()
        import torch

        from SDFSMISLib.inference.segmenter import Segmenter
        from SDFSMISLib.server.engine import Engine
        from SDFSMISLib.server.settings import log_to_stderr

        log_to_stderr()  # Ray keeps it in its session's log folder
        # A run that continues in another replica must give the same bits, which depend on the number of threads. Ray's
        # own setting yields to OMP_NUM_THREADS, which may differ between nodes.
        torch.set_num_threads(1)
        self.tokens = tokens
        self.engine = Engine(Segmenter.from_pretrained(settings.model, settings.device), settings.limits)

    def __serve_build_asgi_app__(self) -> ASGIApp:  # noqa: N807 (Ray Serve's name)
        from SDFSMISLib.server.app import make_app

        return make_app(self.engine, RayStore(self.engine.forget_slice), self.tokens)

    def describe(self) -> tuple[str, float]:
        """Model and device in words, and the seconds per slice."""
        return f"{self.engine.segmenter.name} on {self.engine.device_name}", self.engine.seconds_per_slice

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica that raises here."""
        if self.engine.device_error is not None:
            raise RuntimeError(f"The device has failed: {self.engine.device_error}")
        if not self.engine.scheduler.is_alive:
            raise RuntimeError("The device's thread has ended.")


@contextmanager
def _ray_serve(settings: ServeSettings, address: ListeningAddress, plan: ReplicaPlan) -> Iterator[Any]:
    """Ray Serve with the application, until the block ends; gives a handle to the replicas."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        with waiting(f"Loading the model {settings.model}"), _slow_start_message(plan):
            _start_ray_serve(settings, address)
            try:
                handle = serve.run(_application(settings, address, plan), name=APPLICATION, logging_config=QUIET)
            except RuntimeError as error:
                raise InputError(_start_failure()) from error
        yield handle
    finally:
        serve.shutdown()


def _start_ray_serve(settings: ServeSettings, address: ListeningAddress) -> None:
    """Start Ray Serve's proxies, still without an application."""
    files = {"ssl_keyfile": settings.tls_key, "ssl_certfile": settings.tls_cert}
    certificate = {name: str(path.absolute()) for name, path in files.items() if path is not None}
    try:
        serve.start(
            proxy_location="EveryNode",
            http_options={"host": settings.host, "port": address.port, **certificate},
            logging_config=QUIET,
            controller_options={"runtime_env": {"env_vars": PROXY_VARIABLES}},
        )
    except (RayError, TimeoutError) as error:
        raise InputError(
            f"Ray Serve cannot start at {address.url} ({one_line(error)}); name a --port that is free on each node, "
            "and a certificate that each has."
        ) from error


def _application(settings: ServeSettings, address: ListeningAddress, plan: ReplicaPlan) -> serve.Application:
    folder = Path(settings.model).expanduser()
    is_folder = settings.model != ServeSettings.model and folder.is_dir()
    model = str(folder.absolute()) if is_folder else settings.model  # replicas have another working directory
    deployment: Any = serve.deployment(
        BackendReplica,
        name="backend",
        ray_actor_options={"num_cpus": 1, "num_gpus": plan.gpus},
        max_ongoing_requests=settings.limits.queue + EXTRA_REQUESTS,
        autoscaling_config={"min_replicas": 1, "max_replicas": plan.replicas, **SCALING},
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_timeout_s=GRACE_SECONDS,
        graceful_shutdown_wait_loop_s=POLL_SECONDS,
        max_constructor_retry_count=MAX_STARTS,
        logging_config=QUIET,
    )
    return deployment.bind(replace(settings, model=model, device=plan.device), address.tokens)


def _check_not_serving() -> None:
    """Ray Serve has one set of addresses per cluster; one that another program started is not ours to use or end."""
    try:
        ray.get_actor(*CONTROLLER)
    except ValueError:
        return
    raise InputError(
        "Ray Serve runs on this cluster already; end it with serve shutdown, or name another cluster by RAY_ADDRESS."
    )


@contextmanager
def _slow_start_message(plan: ReplicaPlan) -> Iterator[None]:
    """Prints what a replica waits for if the block takes longer than `SLOW_START_SECONDS`."""
    gpu = " and a GPU" if plan.gpus else ""
    text = f"No replica has started yet; each needs a processor{gpu} of one node. Still waiting."
    timer = threading.Timer(SLOW_START_SECONDS, print_status, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _start_failure() -> str:
    """A sentence on why no replica could start, from Ray Serve's status."""
    (failed,) = serve.status().applications[APPLICATION].deployments.values()
    last = failed.message.strip().rpartition("\n")[2]
    kind, _, text = last.partition(": ")
    if kind.endswith("InputError"):
        return text
    return (
        f"No replica could start ({one_line(last)}); does each node of the cluster have this version of sdfsmis, and "
        "memory for the model?"
    )


@contextmanager
def _stop_event(settings: ServeSettings) -> Iterator[threading.Event]:
    """An event that is set by SIGINT, SIGTERM, or the end of the program that started this one."""
    stopped = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()

    if settings.until_stdin_closes:
        on_stdin_closed(stopped.set)
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# -- the store that all replicas share: a MemoryStore in an actor ------------------------------------------------------


@contextmanager
def store_actor(limits: ServerLimits) -> Iterator[None]:
    """The actor behind every `RayStore` of the cluster, until the block ends; it runs on this process's node."""
    this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor_class = ray.remote(_StoreActor).options(
        name=STORE_ACTOR[0],
        namespace=STORE_ACTOR[1],
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=1,
        scheduling_strategy=this_node,
    )
    actor: Any = actor_class.remote(limits.store_bytes, limits.store_seconds)
    try:
        yield
    finally:
        ray.kill(actor)


class _StoreActor:
    """A `MemoryStore` whose methods Ray calls one at a time."""

    def __init__(self, max_bytes: int, max_seconds: float) -> None:
        self._store = MemoryStore(max_bytes, max_seconds, lambda *key: self._stored.discard(key))
        self._stored: set[Key] = set()

    def put(self, namespace: str, address: str, array: np.ndarray) -> bool:
        self._stored.add((namespace, address))
        return self._store.put(namespace, address, _copy(array))

    def missing(self, namespace: str, addresses: list[str]) -> list[str]:
        return self._store.missing(namespace, addresses)

    def get(self, namespace: str, addresses: list[str]) -> dict[str, np.ndarray]:
        """Those slices that are stored."""
        missing = set(self._store.missing(namespace, addresses))
        return self._store.get(namespace, [address for address in addresses if address not in missing])

    def delete(self, namespace: str, address: str) -> None:
        self._store.delete(namespace, address)

    def expire(self, read: list[Key]) -> tuple[int, list[Key]]:
        """Memory in use, and those slices that a replica has read which are not stored any more."""
        self._store.expire()
        return self._store.bytes, [key for key in read if key not in self._stored]


class RayStore:
    """A `Store` in an actor of the cluster. All calls block; the application makes them in its thread pool.

    Arrays pass through Ray's object store and do not stay there: the actor and the caller have copies. While they
    pass, Ray may write what does not fit into the object store to its spill folder.

    If the actor is lost, for example because memory ran out, Ray restarts it, empty: clients get the list of the
    missing slices and send them again. A call under way at that time is repeated once; one without an answer in time
    fails with status 503, upon which clients try again.

    Other replicas learn from `expire`, which the application calls twice a minute, that a slice was removed; until
    then they keep its latents. Those are found by namespace and content only, hence by nobody else.

    Args:
        on_removed: called with namespace and address of each removed slice that this replica has read.

    Raises:
        ApiError: from all methods but `expire`, if the actor does not answer.

    Example:
        On a cluster, with ``store_actor(limits)`` entered in the process that serves ::

            store = RayStore(on_removed=engine.forget_slice)
            store.put("alice", "a1", np.zeros((4, 8), dtype=np.int16))
    """

    def __init__(self, on_removed: Callable[[str, str], None]) -> None:
        self._actor: Any = ray.get_actor(*STORE_ACTOR)
        self._on_removed = on_removed
        self._read: set[Key] = set()
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """Memory in use at the last call of `expire`."""
        return self._bytes

    def put(self, namespace: str, address: str, array: np.ndarray) -> bool:
        return self._result(self._actor.put.remote(namespace, address, array))

    def missing(self, namespace: str, addresses: Iterable[str]) -> list[str]:
        return self._result(self._actor.missing.remote(namespace, list(addresses)))

    def get(self, namespace: str, addresses: Iterable[str]) -> dict[str, np.ndarray]:
        wanted = list(dict.fromkeys(addresses))
        missing = self.missing(namespace, wanted)
        arrays: dict[str, np.ndarray] = {}
        for start in range(0, 0 if missing else len(wanted), SLICES_PER_CALL):
            part = wanted[start : start + SLICES_PER_CALL]
            found = self._result(self._actor.get.remote(namespace, part))
            arrays |= {address: _copy(array) for address, array in found.items()}
            missing += [address for address in part if address not in found]
        if missing:
            raise MissingSlices(missing)
        with self._lock:
            self._read |= {(namespace, address) for address in wanted}
        return arrays

    def delete(self, namespace: str, address: str) -> None:
        self._result(self._actor.delete.remote(namespace, address))
        self._forget([(namespace, address)])

    def expire(self) -> None:
        with self._lock:
            read = list(self._read)
        with suppress(ApiError):  # called again soon
            self._bytes, removed = self._result(self._actor.expire.remote(read))
            self._forget(removed)

    def _forget(self, keys: Iterable[Key]) -> None:
        for key in keys:
            with self._lock:
                self._read.discard(key)
            self._on_removed(*key)

    def _result(self, reference: Any) -> Any:
        try:
            return ray.get(reference, timeout=STORE_SECONDS)
        except RayTaskError:
            raise  # a defect in the actor's code
        except RayError as error:
            log_event("store does not answer", why=type(error).__name__)
            raise ApiError(
                503,
                "stopping",
                "The store of the slices starts again; try again in a moment.",
                headers={"Retry-After": str(RETRY_SECONDS)},
            ) from error


def _copy(array: np.ndarray) -> np.ndarray:
    """A read-only copy, which unlike the array keeps no memory of Ray's object store in use."""
    copy = np.array(array)
    copy.flags.writeable = False
    return copy


# -- in Ray Serve's proxies --------------------------------------------------------------------------------------------


def middlewares() -> list[Middleware]:
    """The proxies' middleware; each proxy calls this, see `PROXY_VARIABLES`."""
    return [Middleware(_ProxyErrors)]


class _ProxyErrors:
    """ASGI middleware that turns a proxy's own errors into a 503 `ErrorResponse`, upon which clients try again.

    If the replica of a request is lost, or none has started yet, a proxy answers in plain text or not at all.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(RAY_SERVE_PATHS):
            await self._app(scope, receive, send)
            return
        is_from_replica: bool | None = None  # unknown until the answer begins

        async def send_from_replica(message: Message) -> None:
            nonlocal is_from_replica
            if is_from_replica is None:
                is_from_replica = PROTOCOL_HEADER in Headers(raw=message.get("headers", ()))
            if is_from_replica:
                await send(message)

        await self._app(scope, receive, send_from_replica)
        if not is_from_replica:
            headers = {"Retry-After": str(RETRY_SECONDS), PROTOCOL_HEADER: str(PROTOCOL)}
            text = "The replica of this request was lost, or none has started yet; try again in a moment."
            await ApiError(503, "stopping", text, headers=headers).response()(scope, receive, send)
