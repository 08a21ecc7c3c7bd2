"""The MLflow UI on a store: ``python -m tsexp.ui sqlite:////path/mlflow.db``.

Says where the runs are, with the columns that matter.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from tsexp import config as configs
from tsexp import tracking

HOST = "127.0.0.1"


def addresses(uri: str, port: int) -> dict[str, str]:
    """Return each experiment of the store that tsexp wrote, and the address of its runs.

    Raises
    ------
    ConfigError
        If the store is not there, or nothing in it comes from tsexp.
    """
    import mlflow

    file = Path(uri.removeprefix(tracking.SQLITE))
    if uri.startswith(tracking.SQLITE) and not file.exists():
        raise configs.ConfigError(
            f"{file} is not there; run something first (python -m tsexp), or give another store: make ui STORE=sqlite:////path/mlflow.db"
        )
    logging.getLogger("alembic").setLevel(logging.WARNING)
    ours = [
        e
        for e in mlflow.MlflowClient(uri).search_experiments()
        if f"mlflow.sharedViewState.{tracking.VIEW}" in e.tags
    ]
    if not ours:
        raise configs.ConfigError(
            f"{configs.redact(uri)} has no experiment of tsexp; run something first: python -m tsexp"
        )
    return {e.name: tracking.view_url(e.experiment_id, f"http://{HOST}:{port}") for e in ours}


def main() -> None:
    """Serve the UI until it is interrupted."""
    parse = argparse.ArgumentParser(prog="python -m tsexp.ui", description=__doc__)
    parse.add_argument("store", nargs="?", default=f"{tracking.SQLITE}{Path('mlflow.db').absolute()}")
    parse.add_argument("--port", type=int, default=5000)
    asked = parse.parse_args()
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        for name, address in addresses(asked.store, asked.port).items():
            print(f"{name}: {address}", flush=True)
    except configs.ConfigError as error:
        sys.exit(f"tsexp: error: {error}")
    except Exception as error:  # whatever MLflow and its drivers raise
        sys.exit(
            configs.redact(f"tsexp: error: {asked.store} cannot be read ({type(error).__name__}: {error})")
        )
    os.environ["MLFLOW_BACKEND_STORE_URI"] = (
        asked.store
    )  # there may be a password in it, and everybody sees the arguments of a process
    os.execv(
        sys.executable, [sys.executable, "-m", "mlflow", "ui", "--host", HOST, "--port", str(asked.port)]
    )


if __name__ == "__main__":
    main()
