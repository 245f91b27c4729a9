"""The backend on Ray Serve: the same application in a replica for each GPU, or processor, of a cluster; the store of
slices that all of them share, and what stands before Ray Serve's proxies."""

from __future__ import annotations

import logging
import signal
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

from SDFSMISLib.console import one_line, say, waiting
from SDFSMISLib.errors import InputError
from SDFSMISLib.server.access import ListeningAddress, on_stdin_closed
from SDFSMISLib.server.schema import ApiError
from SDFSMISLib.server.settings import ServerLimits, ServeSettings, log_event
from SDFSMISLib.server.store import MemoryStore, MissingSlices
from SDFSMISLib.wire import PROTOCOL, PROTOCOL_HEADER

try:
    from SDFSMISLib.cohort.ray_pool import connected, nodes  # isort: skip  (says what Ray is to print, before it loads)
    import ray
    from ray import serve
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except (ImportError, InputError) as error:
    raise InputError('The engine ray needs Ray, which is not here; run: pip install "sdfsmis[serve,ray]"') from error

__all__ = ["RayStore", "ReplicaPlan", "middlewares", "plan_replicas", "run_ray_server"]

APPLICATION = "sdfsmis"
CONTROLLER = ("SERVE_CONTROLLER_ACTOR", "serve")  # name and namespace under which Ray Serve runs on a cluster
STORE_ACTOR = ("sdfsmis-slices", "sdfsmis")  # name and namespace of the store
EXTRA_REQUESTS = 64  # requests that a replica answers beside its runs
HEALTH_SECONDS = 2.0  # between two questions how a replica is; one that is ill three times is replaced
GRACE_SECONDS = 10.0  # that runs have to end in when their replica is told to stop
SLOW_START_SECONDS = 60.0  # seconds without a replica after which the user is told
MAX_STARTS = 2  # that a replica tries before it is given up
DESCRIBE_SECONDS = 60.0  # that a replica has to say what it serves
STORE_SECONDS = 30.0  # that an answer of the store is waited for, a restart of its actor included
RETRY_SECONDS = 2
SLICES_PER_CALL = 16  # slices that come at once, so that a large scan does not fill the object store
POLL_SECONDS = 0.5  # seconds between two looks at whether to stop; Windows does not wake who waits for longer

QUIET = {"log_level": "ERROR", "enable_access_log": False}
PROXY_VARIABLES = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": f"{__name__}.middlewares"}
RAY_SERVE_PATHS = "/-/"  # paths that tell load balancers how a proxy is

# A run keeps a replica busy, so that a second one at the same time is worth another replica. They stay for a while,
# since a correction comes soon after the result and finds the latents of its scan in the replica that made it.
SCALING = {"target_ongoing_requests": 1, "look_back_period_s": 15, "upscale_delay_s": 5, "downscale_delay_s": 600}

Key = tuple[str, str]  # namespace and content address


def run_ray_server(settings: ServeSettings) -> int:
    """Serve on Ray until told to stop; the exit code, 0.

    The cluster is the one that RAY_ADDRESS names, or that runs here, which stays when the backend ends; else this
    machine. All its nodes have sdfsmis, and find the model and the certificate under the same paths. Clients come in at
    `settings.host` and the same port of the cluster's head node, and of each node with a replica; whichever is asked
    passes it on to a replica of any node. A client whose own node is lost needs the address of another one.

    Ray trusts all who reach its own ports, where no token of its own (RAY_AUTH_MODE) is asked for: a cluster belongs
    behind a firewall. Killed, the backend leaves its replicas, without slices, on a cluster that it joined; `serve
    shutdown` ends them.

    Raises:
        InputError: where Ray is not installed or not to be reached, something else serves on the cluster, it has not
            what the device asks for, or the model cannot be loaded; and as `run_server`.
    """
    address = ListeningAddress.of(settings)
    address.listening.close()  # it was free; Ray Serve takes it by itself
    with connected():
        _check_not_serving()
        place = plan_replicas(nodes(), settings.device)
        with store_actor(settings.limits), _ray_serve(settings, address, place) as handle:
            what, seconds = handle.describe.remote().result(timeout_s=DESCRIBE_SECONDS)
            with _stop_event(settings) as stopped:
                address.announce(f"{what}, with room for {place.replicas} replicas", seconds)
                while not stopped.wait(POLL_SECONDS):
                    pass
    return 0


@dataclass(frozen=True)
class ReplicaPlan:
    """How many replicas find place on a cluster, and what each takes: a processor, and perhaps a GPU."""

    replicas: int
    gpus: int

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"


def plan_replicas(nodes: Sequence[tuple[int, int]], device: str) -> ReplicaPlan:
    """The room that there is.

    Args:
        nodes: processors and GPUs of each.
        device: `auto` (GPUs where there are any), `cpu` or `cuda`.

    Raises:
        InputError: where there is none, or another device is asked for.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(
            f"The device {device} was given; on Ray auto, cpu and cuda are accepted, and each replica has one GPU."
        )
    with_gpu = sum(min(cpus, gpus) for cpus, gpus in nodes)
    if with_gpu and device != "cpu":
        return ReplicaPlan(with_gpu, 1)
    if device == "cuda":
        raise InputError("The device cuda was asked for, but no node of the Ray cluster has a GPU; use auto or cpu.")
    processors = sum(cpus for cpus, _ in nodes)
    if not processors:
        raise InputError("No node of the Ray cluster has processors to work on; start one with ray start.")
    return ReplicaPlan(processors, 0)


@serve.ingress()
class BackendReplica:
    """The application with networks of its own; slices are in the `RayStore` that all share.

    Latents of slices, the queue's bound and what `/metrics` tells are the replica's own. A client that takes results
    slowly does not hold its run back, as it does without Ray: Ray Serve keeps what waits for it.
    """

    def __init__(self, settings: ServeSettings, tokens: Sequence[str]) -> None:
        import torch

        from SDFSMISLib.inference.segmenter import Segmenter
        from SDFSMISLib.server.engine import Engine
        from SDFSMISLib.server.settings import log_to_stderr

        log_to_stderr()  # which Ray keeps in its session's folder of logs
        # A run that goes on in another replica is to come to the same bits, which the number of threads has a part in;
        # Ray's own choice gives way to OMP_NUM_THREADS, which may be another on each node.
        torch.set_num_threads(1)
        segmenter = Segmenter.from_pretrained(settings.model, settings.device)
        self.tokens = tokens
        self.engine = Engine(segmenter, settings.limits, on_device_error=lambda: self.engine.scheduler.stop())

    def __serve_build_asgi_app__(self) -> ASGIApp:  # noqa: N807 (Ray Serve's name)
        from SDFSMISLib.server.app import make_app

        store = RayStore(lambda namespace, address: self.engine.latents.forget(f"{namespace} {address}"))
        return make_app(self.engine, store, self.tokens)

    def describe(self) -> tuple[str, float]:
        """What serves here, and the seconds that a slice takes."""
        return f"{self.engine.segmenter.name} on {self.engine.device_name}", self.engine.seconds_per_slice

    def check_health(self) -> None:
        """Raises where a new replica is to come in the place of this one."""
        if self.engine.lost is not None:
            raise RuntimeError(f"The device has failed: {self.engine.lost}")
        if not self.engine.scheduler.is_alive:
            raise RuntimeError("The device's thread has ended.")


@contextmanager
def _ray_serve(settings: ServeSettings, address: ListeningAddress, place: ReplicaPlan) -> Iterator[Any]:
    """Ray Serve with the application, until the block ends; a handle to the replicas."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        with waiting(f"Loading the model {settings.model}"), _slow_start_message(place):
            _start_serve(settings, address)
            try:
                handle = serve.run(_application(settings, address, place), name=APPLICATION, logging_config=QUIET)
            except RuntimeError as error:
                raise InputError(_start_failure()) from error
        yield handle
    finally:
        serve.shutdown()


def _start_serve(settings: ServeSettings, address: ListeningAddress) -> None:
    """Ray Serve without an application: its addresses."""
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


def _application(settings: ServeSettings, address: ListeningAddress, place: ReplicaPlan) -> serve.Application:
    folder = Path(settings.model).expanduser()
    is_folder = settings.model != ServeSettings.model and folder.is_dir()
    model = str(folder.absolute()) if is_folder else settings.model  # replicas work in other folders
    deployment: Any = serve.deployment(
        BackendReplica,
        name="backend",
        ray_actor_options={"num_cpus": 1, "num_gpus": place.gpus},
        max_ongoing_requests=settings.limits.queue + EXTRA_REQUESTS,
        autoscaling_config={"min_replicas": 1, "max_replicas": place.replicas, **SCALING},
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_timeout_s=GRACE_SECONDS,
        graceful_shutdown_wait_loop_s=POLL_SECONDS,
        max_constructor_retry_count=MAX_STARTS,
        logging_config=QUIET,
    )
    return deployment.bind(replace(settings, model=model, device=place.device), address.tokens)


def _check_not_serving() -> None:
    """Ray Serve has one set of addresses for a whole cluster, and is not this program's to end."""
    try:
        ray.get_actor(*CONTROLLER)
    except ValueError:
        return
    raise InputError(
        "Ray Serve runs on this cluster already; end it with serve shutdown, or name another cluster by RAY_ADDRESS."
    )


@contextmanager
def _slow_start_message(place: ReplicaPlan) -> Iterator[None]:
    """Tells the user, after a while, what a replica waits for."""
    gpu = " and a GPU" if place.gpus else ""
    text = f"No replica has started yet; each needs a processor{gpu} of one node. It is waited for."
    timer = threading.Timer(SLOW_START_SECONDS, say, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _start_failure() -> str:
    """A sentence on what the replicas failed by."""
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
    """An event that is set by a signal to stop, or by the end of the program that started this one."""
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


# -- slices that all replicas share: the store of one process, in an actor ---------------------------------------------


@contextmanager
def store_actor(limits: ServerLimits) -> Iterator[None]:
    """The actor that every `RayStore` of the cluster asks; it ends with the block, and with this process, on whose node
    it is."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    made = ray.remote(_StoreActor).options(
        name=STORE_ACTOR[0],
        namespace=STORE_ACTOR[1],
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=1,
        scheduling_strategy=here,
    )
    actor: Any = made.remote(limits.store_bytes, limits.store_seconds)
    try:
        yield
    finally:
        ray.kill(actor)


class _StoreActor:
    """The actor. It does one thing at a time."""

    def __init__(self, most_bytes: int, max_seconds: float) -> None:
        self._store = MemoryStore(most_bytes, max_seconds, lambda *key: self._here.discard(key))
        self._here: set[Key] = set()

    def put(self, namespace: str, address: str, array: np.ndarray) -> bool:
        self._here.add((namespace, address))
        return self._store.put(namespace, address, np.array(array))  # not a view that keeps a part of the object store

    def missing(self, namespace: str, addresses: list[str]) -> list[str]:
        return self._store.missing(namespace, addresses)

    def get(self, namespace: str, addresses: list[str]) -> dict[str, np.ndarray]:
        """Those that are here."""
        missing = set(self._store.missing(namespace, addresses))
        return self._store.get(namespace, [address for address in addresses if address not in missing])

    def delete(self, namespace: str, address: str) -> None:
        self._store.delete(namespace, address)

    def expire(self, read: list[Key]) -> tuple[int, list[Key]]:
        """Memory in use, and which of the slices that a replica has read are here no longer."""
        self._store.expire()
        return self._store.bytes, [key for key in read if key not in self._here]


class RayStore:
    """Slices in an actor of the cluster; see `Store`. All calls block; the application makes them in its threads.

    Arrays travel through Ray's object store and do not stay there: the actor and who asks for them have copies. What
    does not fit into the object store Ray may write to its spill folder for that while.

    Where the actor is lost, for want of memory for example, it starts again and is empty: clients are told which slices
    are missing, and send them again. A call that is under way meanwhile is made once more; where no answer comes it
    fails with 503, after which clients try again too.

    Of a slice that goes, by a client's wish or by itself, other replicas learn by `expire`, which the application calls
    twice a minute. For so long their latents of it may stay in memory; they are found by namespace and content only, so
    nobody else can come by them.

    Args:
        on_removed: called with namespace and address of each slice that went, of those that this replica has read.
    """

    def __init__(self, on_removed: Callable[[str, str], None]) -> None:
        self._actor: Any = ray.get_actor(*STORE_ACTOR)
        self._on_removed = on_removed
        self._read: set[Key] = set()
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """Memory in use when `expire` was called last."""
        return self._bytes

    def put(self, namespace: str, address: str, array: np.ndarray) -> bool:
        return self._answer(self._actor.put.remote(namespace, address, array))

    def missing(self, namespace: str, addresses: Iterable[str]) -> list[str]:
        return self._answer(self._actor.missing.remote(namespace, list(addresses)))

    def get(self, namespace: str, addresses: Iterable[str]) -> dict[str, np.ndarray]:
        wanted = list(dict.fromkeys(addresses))
        missing = self.missing(namespace, wanted)
        arrays: dict[str, np.ndarray] = {}
        for start in range(0, 0 if missing else len(wanted), SLICES_PER_CALL):
            part = wanted[start : start + SLICES_PER_CALL]
            found = self._answer(self._actor.get.remote(namespace, part))
            arrays |= {address: _own(array) for address, array in found.items()}
            missing += [address for address in part if address not in found]
        if missing:
            raise MissingSlices(missing)
        with self._lock:
            self._read |= {(namespace, address) for address in wanted}
        return arrays

    def delete(self, namespace: str, address: str) -> None:
        self._answer(self._actor.delete.remote(namespace, address))
        self._forget([(namespace, address)])

    def expire(self) -> None:
        with self._lock:
            read = list(self._read)
        with suppress(ApiError):  # it is called again soon
            self._bytes, gone = self._answer(self._actor.expire.remote(read))
            self._forget(gone)

    def _forget(self, keys: Iterable[Key]) -> None:
        for key in keys:
            with self._lock:
                self._read.discard(key)
            self._on_removed(*key)

    def _answer(self, reference: Any) -> Any:
        try:
            return ray.get(reference, timeout=STORE_SECONDS)
        except RayTaskError:
            raise  # a defect
        except RayError as error:
            log_event("store does not answer", why=type(error).__name__)
            raise ApiError(
                503,
                "stopping",
                "The store of the slices starts again; ask again in a moment.",
                headers={"Retry-After": str(RETRY_SECONDS)},
            ) from error


def _own(array: np.ndarray) -> np.ndarray:
    """A copy that keeps no part of the object store."""
    copy = np.array(array)
    copy.flags.writeable = False
    return copy


# -- before Ray Serve's proxies: clients understand what these answer by themselves ------------------------------------


def middlewares() -> list[Middleware]:
    """For Ray Serve, which calls it in each proxy; see RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH."""
    return [Middleware(_ProxyErrors)]


class _ProxyErrors:
    """An ASGI application before another: what is not an answer of a replica becomes one that says to come again.

    A proxy answers in plain text, or not at all, where the replica that it asked is lost, or it knows of none yet.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(RAY_SERVE_PATHS):
            await self._app(scope, receive, send)
            return
        is_replicas: bool | None = None  # not known before the answer begins

        async def sending(message: Message) -> None:
            nonlocal is_replicas
            if is_replicas is None:
                is_replicas = PROTOCOL_HEADER in Headers(raw=message.get("headers", ()))
            if is_replicas:
                await send(message)

        await self._app(scope, receive, sending)
        if not is_replicas:
            headers = {"Retry-After": str(RETRY_SECONDS), PROTOCOL_HEADER: str(PROTOCOL)}
            text = "The replica that was asked is gone, or none is there yet; ask again in a moment."
            await ApiError(503, "stopping", text, headers=headers).answer()(scope, receive, send)
