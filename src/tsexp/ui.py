"""The MLflow UI on a store, with the addresses of its runs."""

from __future__ import annotations

import argparse
import os
import socket
import sys

from tsexp import config as configs
from tsexp import stores, subcommand
from tsexp.command import called
from tsexp.config import secret

HOST = "127.0.0.1"
PORT = 5000


def addresses(uri: str, port: int) -> dict[str, str]:
    """Return each experiment of the store that tsexp wrote, and the address of its runs.

    Raises
    ------
    ConfigError, ReportError
        If the store is not there, does not answer, or nothing in it comes from tsexp.
    """
    from tsexp import tracking
    from tsexp.report.store import connect

    file = stores.file_of(uri)
    if file is not None and not file.is_file():
        raise configs.ConfigError(
            f"{file} is not there; run something first (tsexp, or python -m tsexp), or give another store: "
            f"{called('ui')} PATH/mlflow.db"
        )
    mark = f"mlflow.sharedViewState.{tracking.VIEW}"
    ours = [e for e in connect(uri).search_experiments() if mark in e.tags]
    if not ours:
        raise configs.ConfigError(
            f"{configs.redact(uri)} has no experiment of tsexp; run something first: python -m tsexp"
        )
    server = configs.redact(uri).rstrip("/") if uri.startswith("http") else f"http://{HOST}:{port}"
    return {e.name: tracking.view_url(e.experiment_id, server) for e in ours}


def main(arguments: list[str] | None = None) -> int:
    """Print where the runs are, and serve the UI until it is interrupted; return 2 for bad input.

    The UI of a server is there already.
    """
    parser = argparse.ArgumentParser(prog=called("ui"), description=__doc__)
    parser.add_argument(
        "store",
        nargs="?",
        default="mlflow.db",
        help="path of a sqlite file, or any URI that MLflow takes (default: mlflow.db in this folder)",
    )
    parser.add_argument("--port", type=int, default=PORT, help=f"of the server, on {HOST} (default: {PORT})")
    if arguments is None:
        secret.out_of_sight()
    asked = parser.parse_args(arguments)
    return subcommand.carried_out(
        "ui", lambda: _serve(secret.given(asked.store), asked.port), "nothing is served"
    )


def _serve(store: str, port: int) -> None:
    uri = stores.uri_of(store)
    if not uri.startswith("http"):
        _check_free(port)
    for name, address in addresses(uri, port).items():
        print(f"{name}: {address}", flush=True)
    if uri.startswith("http"):
        return
    # Not among the arguments, which everybody sees of a process: there may be a password in it.
    os.environ["MLFLOW_BACKEND_STORE_URI"] = uri
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "ui", "--host", HOST, "--port", str(port)])


def _check_free(port: int) -> None:
    if not 0 < port < 2**16:
        raise configs.ConfigError(f"--port={port} is no port; allowed: 1 to {2**16 - 1}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was just left is free
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise configs.ConfigError(
                f"port {port} of {HOST} cannot be had ({error.strerror}); another UI may be running there; "
                f"take another: --port {port % (2**16 - 1) + 1}"
            ) from None


if __name__ == "__main__":
    sys.exit(main())
