"""A Ray cluster of three nodes on this machine, and the backend on Ray Serve on it, for tests that lose some of it."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import os
import re
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from SDFSMISLib.client import Client
from SDFSMISLib.server.ray_serving import APPLICATION, quiet_port, ray, serve

TESTING = Path(__file__).resolve().parent
ROOT = TESTING.parent
TOKEN = "a-token-of-more-than-16-letters"
SECONDS = 120.0  # that things may take on a slow machine
NODE = {"num_gpus": 0, "object_store_memory": 80 << 20, "include_log_monitor": False}


ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(TESTING)]),  # of the nodes' workers
    # Else Ray Serve takes ten seconds to see that there is much to do, and Ray fifteen to see that a node is lost.
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    # Else a proxy that takes more than five seconds to start is ended and started again, without end on a busy machine.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    # Else a replica that is slow to tell what it has to do gets nothing.
    "RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "10",
    "RAY_SERVE_MAX_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "10",
    # Looks less often at what runs, and starts no workers before there is work: processor time of other tests.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    "RAY_prestart_worker_first_driver": "0",
    # The nodes of a real cluster have addresses of their own; here they have ports.
    "RAY_SERVE_WORKER_PROXY_HTTP_PORT": str(quiet_port("127.0.0.1")),
}


class Nodes:
    """A cluster whose head takes no work, so that any node with some may be lost; the second of two comes back."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        head = {**NODE, "num_cpus": 0, "include_dashboard": False, "no_monitor": True}
        self.cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        self.cluster.add_node(**NODE, num_cpus=1)
        self.second: Any = None

    def with_second(self, **variables: str) -> None:
        if self.second is None:
            self.second = self.cluster.add_node(**NODE, num_cpus=1, env_vars=variables)

    def lose_second(self) -> None:
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.second = None


class OnRay:
    """`sdfsmis serve --engine ray` on the cluster."""

    def __init__(self, cluster: Any, certificate: Path) -> None:
        self.cluster = cluster
        self.certificate = certificate
        options = ["--engine", "ray", "--port", "0", "--tls-cert", certificate, "--tls-key", certificate]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "SDFSMISLib.cli", "serve", *map(str, options)],
            cwd=ROOT,
            env={**os.environ, "SDFSMIS_TOKEN": TOKEN},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None and self.process.stderr is not None
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        self.url = json.loads(line)["url"]
        ray.init(log_to_driver=False, logging_level=logging.ERROR)

    def client(self, token: str = TOKEN, url: str = "") -> Client:
        return Client(url or self.url, token, ca_file=str(self.certificate))

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> http.client.HTTPResponse:
        context = ssl.create_default_context(cafile=str(self.certificate))
        connection = http.client.HTTPSConnection(urlsplit(self.url).netloc, timeout=SECONDS, context=context)
        connection.request(method, path, body, {"Authorization": f"Bearer {TOKEN}", **headers})
        return connection.getresponse()

    def ask_each(self, method: str, path: str) -> list[tuple[int, str]]:
        """Status and body with which each replica answers, asked directly: which one a proxy asks is up to chance."""
        answers = [replica.__ray_call__.remote(answer_of_this_replica, method, path) for replica in self.replicas()]
        return ray.get(answers, timeout=SECONDS)

    def figures(self, name: str) -> list[float]:
        """A figure of each replica."""
        wanted = re.compile(rf"^{re.escape(name)} (\S+)$", re.MULTILINE)
        found = [wanted.search(text) for _, text in self.ask_each("GET", "/metrics")]
        return [float(figure[1]) if figure else 0.0 for figure in found]

    def replicas(self) -> list[Any]:
        """The actors of those that run."""
        names = [one["name"] for one in ray.util.list_named_actors(all_namespaces=True)]
        return [ray.get_actor(name, "serve") for name in names if name.startswith("SERVE_REPLICA::")]

    def ready_replicas(self) -> int:
        (backend,) = serve.status().applications[APPLICATION].deployments.values()
        return backend.replica_states.get("RUNNING", 0)

    def node_of_a_run(self) -> Any:
        """The node of a replica that is at a run."""
        for replica in self.replicas():
            if ray.get(replica.get_num_ongoing_requests.remote()):
                place = ray.get(replica.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id()))
                return next(node for node in self.cluster.worker_nodes if node.node_id == place)
        return None


def answer_of_this_replica(_: Any, method: str, path: str) -> tuple[int, str]:
    """In the process of a replica: what its application answers."""
    app = serve.get_replica_context().servable_object
    header = (b"authorization", f"Bearer {TOKEN}".encode())
    scope = {
        "type": "http",
        "method": method,
        "scheme": "https",
        "path": path,
        "query_string": b"",
        "headers": [header],
    }
    messages: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        messages.append(message)

    with ThreadPoolExecutor(1) as thread:  # this one has an event loop already
        thread.submit(asyncio.run, app(scope, receive, send)).result()
    start, *bodies = messages
    return start["status"], b"".join(body["body"] for body in bodies).decode()


def wait_for(is_so: Callable[[], bool]) -> None:
    """Wait for something that happens on the cluster, which each look takes some work."""
    end = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)
