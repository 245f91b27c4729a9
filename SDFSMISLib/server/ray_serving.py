"""The backend on Ray Serve: the same application in a replica for each GPU, or processor, of a cluster."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from starlette.types import ASGIApp

from SDFSMISLib.console import one_line, say, waiting
from SDFSMISLib.errors import InputError
from SDFSMISLib.server.entrance import Entrance, when_stdin_closes
from SDFSMISLib.server.settings import ServeSettings

try:
    import ray
    from ray import serve
    from ray.exceptions import RayError
except ImportError as error:
    raise InputError('The engine ray needs Ray, which is not here; run: pip install "sdfsmis[serve,ray]"') from error

from SDFSMISLib.ray_cluster import connected, nodes
from SDFSMISLib.server.ray_store import RayStore, shared_slices

__all__ = ["Room", "room", "run_ray_server"]

APPLICATION = "sdfsmis"
CONTROLLER = ("SERVE_CONTROLLER_ACTOR", "serve")  # name and namespace under which Ray Serve runs on a cluster
BESIDE = 64  # requests that a replica answers beside its runs
HEALTH_SECONDS = 2.0  # between two questions how a replica is; one that is ill three times is replaced
GRACE_SECONDS = 10.0  # that runs have to end in when their replica is told to stop
NOTICE = 60.0  # seconds without a replica after which the user is told
STARTS = 2  # that a replica tries before it is given up
ANSWER_SECONDS = 60.0
LOOK = 0.5  # seconds between two looks at whether to stop; Windows does not wake who waits for longer

QUIET = {"log_level": "ERROR", "enable_access_log": False}
TRANSLATED = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "SDFSMISLib.server.ray_proxy.middlewares"}

# A run keeps a replica busy, so that a second one at the same time is worth another replica. They stay for a while,
# since a correction comes soon after the result and finds the latents of its scan in the replica that made it.
SCALING = {"target_ongoing_requests": 1, "look_back_period_s": 15, "upscale_delay_s": 5, "downscale_delay_s": 600}


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
    entrance = Entrance.of(settings)
    entrance.listening.close()  # it was free; Ray Serve takes it by itself
    with connected():
        _refuse_a_second()
        place = room(nodes(), settings.device)
        with shared_slices(settings.limits), _served(settings, entrance, place) as handle:
            what, seconds = handle.describe.remote().result(timeout_s=ANSWER_SECONDS)
            with _told_to_stop(settings) as stopped:
                entrance.tell_open(f"{what}, with room for {place.replicas} replicas", seconds)
                while not stopped.wait(LOOK):
                    pass
    return 0


@dataclass(frozen=True)
class Room:
    """How many replicas find place on a cluster, and what each takes: a processor, and perhaps a GPU."""

    replicas: int
    gpus: int

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"


def room(nodes: Sequence[tuple[int, int]], device: str) -> Room:
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
        return Room(with_gpu, 1)
    if device == "cuda":
        raise InputError("The device cuda was asked for, but no node of the Ray cluster has a GPU; use auto or cpu.")
    processors = sum(cpus for cpus, _ in nodes)
    if not processors:
        raise InputError("No node of the Ray cluster has processors to work on; start one with ray start.")
    return Room(processors, 0)


@serve.ingress()
class Replica:
    """The application with networks of its own; slices are in the `RayStore` that all share.

    Latents of slices, the queue's bound and what `/metrics` tells are the replica's own. A client that takes results
    slowly does not hold its run back, as it does without Ray: Ray Serve keeps what waits for it.
    """

    def __init__(self, settings: ServeSettings, tokens: Sequence[str]) -> None:
        import torch

        from SDFSMISLib.inference.segmenter import Segmenter
        from SDFSMISLib.server.engine import Engine
        from SDFSMISLib.server.logs import log_to_stderr

        log_to_stderr()  # which Ray keeps in its session's folder of logs
        # A run that goes on in another replica is to come to the same bits, which the number of threads has a part in;
        # Ray's own choice gives way to OMP_NUM_THREADS, which may be another on each node.
        torch.set_num_threads(1)
        segmenter = Segmenter.from_pretrained(settings.model, settings.device)
        self.tokens = tokens
        self.engine = Engine(segmenter, settings.limits, on_lost=lambda: self.engine.scheduler.stop())

    def __serve_build_asgi_app__(self) -> ASGIApp:  # noqa: N807 (Ray Serve's name)
        from SDFSMISLib.server.app import make_app

        store = RayStore(lambda owner, address: self.engine.latents.forget(f"{owner} {address}"))
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
def _served(settings: ServeSettings, entrance: Entrance, place: Room) -> Iterator[Any]:
    """Ray Serve with the application, until the block ends; a handle to the replicas."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        with waiting(f"Loading the model {settings.model}"), _noticed(place):
            _start_serve(settings, entrance)
            try:
                handle = serve.run(_application(settings, entrance, place), name=APPLICATION, logging_config=QUIET)
            except RuntimeError as error:
                raise InputError(_why_not_started()) from error
        yield handle
    finally:
        serve.shutdown()


def _start_serve(settings: ServeSettings, entrance: Entrance) -> None:
    """Ray Serve without an application: its addresses."""
    files = {"ssl_keyfile": settings.tls_key, "ssl_certfile": settings.tls_cert}
    certificate = {name: str(path.absolute()) for name, path in files.items() if path is not None}
    try:
        serve.start(
            proxy_location="EveryNode",
            http_options={"host": settings.host, "port": entrance.port, **certificate},
            logging_config=QUIET,
            controller_options={"runtime_env": {"env_vars": TRANSLATED}},
        )
    except (RayError, TimeoutError) as error:
        raise InputError(
            f"Ray Serve cannot start at {entrance.url} ({one_line(error)}); name a --port that is free on each node, "
            "and a certificate that each has."
        ) from error


def _application(settings: ServeSettings, entrance: Entrance, place: Room) -> serve.Application:
    folder = Path(settings.model).expanduser()
    is_folder = settings.model != ServeSettings.model and folder.is_dir()
    model = str(folder.absolute()) if is_folder else settings.model  # replicas work in other folders
    deployment: Any = serve.deployment(
        Replica,
        name="backend",
        ray_actor_options={"num_cpus": 1, "num_gpus": place.gpus},
        max_ongoing_requests=settings.limits.queue + BESIDE,
        autoscaling_config={"min_replicas": 1, "max_replicas": place.replicas, **SCALING},
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_timeout_s=GRACE_SECONDS,
        graceful_shutdown_wait_loop_s=LOOK,
        max_constructor_retry_count=STARTS,
        logging_config=QUIET,
    )
    return deployment.bind(replace(settings, model=model, device=place.device), entrance.tokens)


def _refuse_a_second() -> None:
    """Ray Serve has one set of addresses for a whole cluster, and is not this program's to end."""
    try:
        ray.get_actor(*CONTROLLER)
    except ValueError:
        return
    raise InputError(
        "Ray Serve runs on this cluster already; end it with serve shutdown, or name another cluster by RAY_ADDRESS."
    )


@contextmanager
def _noticed(place: Room) -> Iterator[None]:
    """Tells the user, after a while, what a replica waits for."""
    gpu = " and a GPU" if place.gpus else ""
    text = f"No replica has started yet; each needs a processor{gpu} of one node. It is waited for."
    timer = threading.Timer(NOTICE, say, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _why_not_started() -> str:
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
def _told_to_stop(settings: ServeSettings) -> Iterator[threading.Event]:
    """An event that is set by a signal to stop, or by the end of the program that started this one."""
    stopped = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()

    if settings.until_stdin_closes:
        when_stdin_closes(stopped.set)
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
