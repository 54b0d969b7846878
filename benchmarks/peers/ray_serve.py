"""Ray Serve with dynamic request batching, two replicas and `RAY_SERVE_THROUGHPUT_OPTIMIZED` (its guides "Dynamic
Request Batching" and "Performance Tuning"). The graph runs in a thread, so that the replica's event loop goes on."""

import asyncio
import sys
import time
from pathlib import Path

import ray
from ray import serve
from ray._common.tls_utils import add_port_to_grpc_server
from ray.serve._private import replica
from ray.serve.schema import LoggingConfig
from starlette.requests import Request
from starlette.responses import JSONResponse

from benchmarks.peers.graph import BATCH, WAIT_SECONDS, WORKERS, Classifier


class Replica:
    """One instance a replica."""

    def __init__(self, artifact: str) -> None:
        # The port between replicas is the only one whose address no setting reaches; it is opened after this.
        replica.add_port_to_grpc_server = lambda server, _: add_port_to_grpc_server(server, "127.0.0.1:0")
        self._classify = Classifier(Path(artifact))

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT_SECONDS)
    async def _batch(self, texts: list[str]) -> list[str]:
        return await asyncio.to_thread(self._classify, texts)

    async def __call__(self, request: Request) -> JSONResponse:
        # A dict would be answered in chunks, without a length.
        return JSONResponse({"label": await self._batch((await request.json())["text"])})


def main(artifact: str, port: int) -> None:
    # Its sockets go into the folder of this process, whose name must be short: they have room for 107 characters.
    ray.init(
        num_cpus=WORKERS,
        include_dashboard=False,
        object_store_memory=200 * 2**20,
        _temp_dir=str(Path.cwd()),
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    # A replica takes up to twice a batch, so that one waits while one runs.
    deployment = serve.deployment(
        Replica, num_replicas=WORKERS, ray_actor_options={"num_cpus": 1}, max_ongoing_requests=2 * BATCH
    )
    logging = LoggingConfig(enable_access_log=False)
    serve.run(deployment.bind(artifact), name="bench", route_prefix="/", logging_config=logging)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
