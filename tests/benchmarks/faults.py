"""What dies, how often it was tried, what was lost, what is there twice: the table of docs/survive.md.

Results are made up, everything behind them is real: the spool, MLflow's server, PostgreSQL, sqlite, processes
that are killed at a random moment. A try ends with a delivery, as of the same command or ``tsexp sync``, and
with a look at all that should be in the store.

    python tests/benchmarks/faults.py [--tries 20] [server-20s server-gone postgres kill disk]
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[1]))

import test_survive as made_up
from conftest import TINY, compose
from tsexp import data, runtimes, stores, tracking, training
from tsexp.cache import Cache
from tsexp.config import Config, ConfigError, DataConfig
from tsexp.models import transformer
from tsexp.tracking import spool
from tsexp.training import Fitted

AFTER_S = (0.0, 3.0)
"""Something dies so long after a job began to write its result down, which takes about that long."""

LEFT: list[Callable[[], object]] = []
"""What ends the servers and the file systems that a fault has left."""


def make(folder: Path) -> SimpleNamespace:
    dataset = data.load(DataConfig("ItalyPowerDemand", None, "znorm", "pad", None, "interpolate", 0.2), "", 0)
    cfg, cache = compose(*TINY, "data=italy_power_demand"), Cache(folder / "made")
    model = transformer.build(cfg.model, dataset).eval()
    history = [{"epoch": i, "train_loss": 2.0 - i} for i in range(3)]
    dense = Fitted(cache.stage("dense", 1, {}, lambda to: training.save(model, history, to)))
    artifact = runtimes.deploy(dense, cfg.quant, cfg.runtime, dataset, cache)
    scores = runtimes.load(artifact.folder)(dataset.x_test)
    return SimpleNamespace(dense=dense, artifact=artifact, scores=scores, dataset=dataset)


def experiment(folder: Path, uri: str) -> Config:
    folder.mkdir(exist_ok=True)
    cfg = compose(*TINY, "data=italy_power_demand", f"paths.spool={folder}/spool")
    return replace(cfg, tracking=replace(cfg.tracking, uri=uri))


class Server:
    """MLflow's own, that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        store = ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        where = ["--artifacts-destination", f"{self.folder}/artifacts", "--port", str(self.port)]
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                [*command, *store, *where],
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )

    def answers(self) -> None:
        end = time.monotonic() + 180
        while time.monotonic() < end:
            with suppress(ConfigError):
                stores.client(self.uri)
                return
            time.sleep(0.5)
        raise SystemExit("the server does not start")

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def later(delay_s: float, what: Callable[[], None]) -> Iterator[None]:
    """Do it so much later, in a thread; wait for it in the end."""
    import threading

    timer = threading.Timer(delay_s, what)
    timer.start()
    try:
        yield
    finally:
        timer.join()


def server_20s(folder: Path, made: SimpleNamespace, tries: int) -> tuple[Config, int]:
    server = Server(folder)
    server.answers()
    cfg = experiment(folder, server.uri)
    tracking.store(cfg.tracking)

    def away() -> None:
        server.kill()
        time.sleep(20)
        server.start()

    for i in range(tries):
        server.answers()
        with later(random.uniform(*AFTER_S), away), suppress(tracking.NotDelivered):
            made_up.measure(made, cfg, f"result {i}", "a sweep")
        print(f"server gone for 20 s: {i + 1} of {tries}", flush=True)
    server.answers()
    LEFT.append(server.kill)
    return cfg, tries


def server_gone(folder: Path, made: SimpleNamespace, tries: int) -> tuple[Config, int]:
    server = Server(folder)
    server.answers()
    cfg = experiment(folder, server.uri)
    tracking.store(cfg.tracking)
    for i in range(tries):
        server.answers()
        with later(random.uniform(*AFTER_S), server.kill), suppress(tracking.NotDelivered):
            made_up.measure(made, cfg, f"result {i}", "a sweep")
        server.start()
        print(f"server gone for good: {i + 1} of {tries}", flush=True)
    server.answers()
    LEFT.append(server.kill)
    return cfg, tries


def postgres(folder: Path, made: SimpleNamespace, tries: int) -> tuple[Config, int]:
    tools = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not tools:
        raise SystemExit("PostgreSQL is not installed: apt-get install postgresql")
    owner = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    base = Path(tempfile.mkdtemp(prefix="faults-pg-", dir="/tmp"))
    if owner:
        shutil.chown(base, "postgres")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def pg(*arguments: str) -> None:
        subprocess.run([*owner, *arguments], check=True, stdout=subprocess.DEVNULL, cwd="/tmp")

    control = [f"{tools[-1]}/pg_ctl", "-D", f"{base}/data", "-w", "-l", f"{base}/log"]
    pg(f"{tools[-1]}/initdb", "-D", f"{base}/data", "-U", "tsexp", "--auth=trust")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -k {base}"
    pg(*control, "-o", options, "start")
    pg(f"{tools[-1]}/createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "tsexp", "tsexp")
    cfg = experiment(folder, f"postgresql+psycopg://tsexp@127.0.0.1:{port}/tsexp")
    cfg = replace(cfg, tracking=replace(cfg.tracking, artifacts=str(folder / "artifacts")))
    LEFT.append(lambda: pg(*control, "-m", "immediate", "stop"))
    tracking.store(cfg.tracking)
    for i in range(tries):
        restart = [*control, "-o", options, "-m", random.choice(["immediate", "fast"]), "restart"]
        with later(random.uniform(*AFTER_S), lambda restart=restart: pg(*restart)):
            with suppress(tracking.NotDelivered):
                made_up.measure(made, cfg, f"result {i}", "a sweep")
        print(f"PostgreSQL restarted: {i + 1} of {tries}", flush=True)
    return cfg, tries


def kill(folder: Path, made: SimpleNamespace, tries: int) -> tuple[Config, int]:
    """Processes that write down and deliver are killed; what was not written down yet is measured again."""
    cfg = experiment(folder, f"sqlite:///{folder}/mlflow.db")
    tracking.store(cfg.tracking)
    for i in range(tries):
        pid = os.fork()
        if pid == 0:
            with suppress(BaseException):
                made_up.measure(made, cfg, f"result {i}")
            os._exit(0)
        time.sleep(random.uniform(*AFTER_S))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        # The same command: what was kept is delivered, else it is measured.
        if spool.known(cfg.paths, cfg.tracking, f"result {i}") is None:
            made_up.measure(made, cfg, f"result {i}")
        print(f"kill -9: {i + 1} of {tries}", flush=True)
    return cfg, tries


def disk(folder: Path, made: SimpleNamespace, tries: int) -> tuple[Config, int]:
    """The disk of the store has a random amount of room left."""
    small = folder / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", small], check=True)
    LEFT.append(lambda: subprocess.run(["umount", "-l", small], check=True))
    cfg = experiment(folder, f"sqlite:///{small}/mlflow.db")
    tracking.store(cfg.tracking)
    for i in range(tries):
        room = shutil.disk_usage(small).free
        (small / "filler").write_bytes(bytes(max(0, room - random.randrange(0, 1_000_000))))
        with suppress(tracking.NotDelivered):
            made_up.measure(made, cfg, f"result {i}", "a sweep")
        (small / "filler").unlink()
        left = spool.sync(cfg.paths, cfg.tracking)[1]
        assert not left, left
        print(f"disk of the store full: {i + 1} of {tries}", flush=True)
    return cfg, tries


FAULTS = {
    "server-20s": ("the MLflow server gone for 20 s while a result is delivered", server_20s),
    "server-gone": ("the MLflow server killed, and started again after the job had ended", server_gone),
    "postgres": ("PostgreSQL restarted while a result is delivered", postgres),
    "kill": ("`kill -9` of a process that writes its result down or delivers it", kill),
    "disk": ("the disk of the store full, with 0 to 1 MB left", disk),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("faults", nargs="*", default=list(FAULTS), metavar="fault")
    parser.add_argument("--tries", type=int, default=20)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tsexp-faults-", ignore_cleanup_errors=True) as name:
        made = make(Path(name))
        for fault in asked.faults:
            what, run = FAULTS[fault]
            folder = Path(name) / fault
            folder.mkdir()
            cfg, tries = run(folder, made, asked.tries)
            kept = len(spool.waiting(cfg.paths, cfg.tracking))
            taken, left = spool.sync(cfg.paths, cfg.tracking)
            found = made_up.runs(cfg)
            signatures = [r.data.tags["tsexp.signature"] for r in found]
            broken = [r.info.run_id for r in found if not made_up.whole(cfg, r)]
            lost = tries - len(set(signatures))
            twice = len(signatures) - len(set(signatures))
            waited = f"{kept} were kept in between"
            print(f"| {what} | {tries} | {lost} | {twice} | {waited}; {len(broken)} incomplete |", flush=True)
            assert not left, left
            assert len(taken) == kept
            while LEFT:
                LEFT.pop()()


if __name__ == "__main__":
    main()
