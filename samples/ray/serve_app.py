"""Serves a folder on Ray: the application of `doge-export serve` in replicas that come and go with the load.

python serve_app.py out --precision int8 --replicas 1 8; each replica opens the folder, so every machine must see it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import ray
from ray import serve


def application(folder: Path, parallel: int, max_queue: int, replicas: tuple[int, int], **opening: Any) -> Any:
    """Return the Ray Serve application of a folder.

    Args:
        folder: an exported folder.
        parallel: answers that a replica writes at once.
        max_queue: answers that wait in a replica; Ray's own queue is before it.
        replicas: least and most replicas.
        opening: keywords of `doge_export.load`.
    """
    name = folder.resolve().name

    def build() -> Any:  # in the replica, which opens the folder
        from doge_export.serve.app import App
        from doge_export.serve.model import ServedModel

        app = App(name)
        app.model = ServedModel(folder, parallel, max_queue, **opening)
        return app.asgi

    scaling = {"min_replicas": replicas[0], "max_replicas": replicas[1], "target_ongoing_requests": parallel}
    options = {"max_ongoing_requests": parallel + max_queue, "autoscaling_config": scaling}
    return serve.deployment(serve.ingress(build)(), name=f"doge-{name}", **options).bind()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="an exported folder")
    parser.add_argument("--precision")
    parser.add_argument("--parallel", type=int, default=8, help="answers that a replica writes at once")
    parser.add_argument("--max-queue", type=int, default=8, help="answers that wait in a replica")
    parser.add_argument("--replicas", type=int, nargs=2, default=(1, 4), metavar=("MIN", "MAX"))
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--address", help="a Ray cluster; by default one of this machine is begun")
    arguments = parser.parse_args()
    ray.init(address=arguments.address, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": arguments.host, "port": arguments.port})
    app = application(
        arguments.folder.resolve(),
        arguments.parallel,
        arguments.max_queue,
        tuple(arguments.replicas),
        precision=arguments.precision,
    )
    serve.run(app, name="doge")
    print(f"listening on http://{arguments.host}:{arguments.port}", flush=True)
    try:
        while True:
            time.sleep(3600)
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
