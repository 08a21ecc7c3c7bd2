"""Real engines on this machine: a SLURM cluster with two nodes, PostgreSQL, MLflow's server, a Ray cluster.

Each is a context manager that starts an engine in a folder, yields how to reach it, and leaves nothing
behind. `Missing` says why one cannot start here. Everything listens on 127.0.0.1.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path


class Missing(Exception):
    """The engine cannot run here; the message says why, and what to do."""


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def until(ready: Callable[[], bool], what: str, within_s: float = 30) -> None:
    """Wait; after `within_s` say what did not come."""
    end = time.monotonic() + within_s
    while not ready():
        if time.monotonic() > end:
            raise Missing(f"{what} within {within_s:g} s")
        time.sleep(0.1)


@contextlib.contextmanager
def place() -> Iterator[Path]:
    """A folder that every user may enter, with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="tsexp-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@contextlib.contextmanager
def running(command: list[str], log: Path, **more: object) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon in the foreground; killed with all its children in the end."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, **more
        )  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)


def needed(program: str, package: str) -> str:
    """Path of a program that a Debian package brings."""
    found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is None:
        raise Missing(f"{program} is not installed; apt-get install {package}")
    return found


SLURM = """
ClusterName=one
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
KillWait=2
MessageTimeout=30
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=2 RealMemory=2000 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
PartitionName=meter Nodes=n2 MaxTime=INFINITE State=UP
"""


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """A cluster of two nodes, n1 and n2, on this machine; yields the environment that its commands need."""
    for program in ("slurmctld", "slurmd", "sbatch", "munged"):
        needed(program, "slurmctld slurmd slurm-client munge")
    if os.getuid() != 0:
        raise Missing("SLURM's daemons are started as root here")
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    conf = folder / "slurm.conf"
    conf.write_text(
        SLURM.format(
            folder=folder,
            host=socket.gethostname().split(".")[0],
            controller=free_port(),
            first=free_port(),
            second=free_port(),
        )
    )
    environment = {"SLURM_CONF": str(conf)}
    with contextlib.ExitStack() as started:

        def start(name: str, *command: str) -> None:
            path = needed(command[0], "slurm")
            started.enter_context(
                running([path, *command[1:]], folder / f"{name}.out", env=os.environ | environment)
            )

        start(
            "munged", "munged", "--foreground", "--force", f"--socket={folder}/munge.socket",
            f"--key-file={key}", f"--pid-file={folder}/munge.pid", f"--log-file={folder}/munge.log",
            f"--seed-file={folder}/munge.seed",
        )  # fmt: skip
        until((folder / "munge.socket").exists, "munged did not start")
        start("slurmctld", "slurmctld", "-D", "-i")
        for node in ("n1", "n2"):
            start(node, "slurmd", "-D", "-N", node)

        def idle() -> bool:
            said = subprocess.run(
                ["sinfo", "-h", "-N", "-o", "%N %t"],
                capture_output=True,
                text=True,
                env=os.environ | environment,
            ).stdout
            return {"n1 idle", "n2 idle"} <= set(said.split("\n"))

        until(idle, f"SLURM's two nodes did not become idle (logs: {folder})")
        yield environment
        subprocess.run(["scancel", "--user=root"], env=os.environ | environment, capture_output=True)
        time.sleep(0.5)


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """An empty database that takes anybody of this machine; yields its URI."""
    programs = [
        found
        for name in ("initdb", "postgres")
        if (found := next(iter(sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))[::-1]), None))
    ]
    if len(programs) < 2:
        raise Missing("PostgreSQL is not installed; apt-get install postgresql")
    user: dict[str, object] = {}
    if os.getuid() == 0:  # PostgreSQL refuses to run as root
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            raise Missing("PostgreSQL does not run as root, and there is no user postgres") from None
        shutil.chown(folder, "postgres")
        user = {"user": "postgres", "group": "postgres", "extra_groups": []}
    port, data = free_port(), folder / "data"
    make = [str(programs[0]), "-D", str(data), "-A", "trust", "-U", "tsexp", "--no-sync", "-E", "UTF8"]
    subprocess.run(make, check=True, capture_output=True, cwd=folder, **user)  # type: ignore[call-overload]
    listen = ["-c", "listen_addresses=127.0.0.1", "-p", str(port), "-c", f"unix_socket_directories={folder}"]
    serve = [str(programs[1]), "-D", str(data), "-c", "max_connections=300", *listen]
    with running(serve, folder / "postgres.log", cwd=folder, **user):

        def answers() -> bool:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                return True
            return False

        until(answers, f"PostgreSQL did not answer (log: {folder}/postgres.log)")
        time.sleep(0.5)
        yield f"postgresql://tsexp@127.0.0.1:{port}/postgres"


@contextlib.contextmanager
def mlflow_server(folder: Path, store: str, *options: str) -> Iterator[str]:
    """An MLflow server; yields its address."""
    port = free_port()
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
        "--backend-store-uri", store, *options,
    ]  # fmt: skip
    if "--workers" not in options:  # a busy machine takes several for dead, one after the other
        command += ["--workers", "1"]
    quiet = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    address = f"http://127.0.0.1:{port}"
    with running(command, folder / "mlflow.log", cwd=folder, env=quiet):

        def answers() -> bool:
            # The first answer takes its imports, on a busy machine longer than a job of a sweep waits.
            asked = urllib.request.Request(
                f"{address}/api/2.0/mlflow/experiments/search",
                b'{"max_results": 1}',
                {"Content-Type": "application/json"},
            )
            with contextlib.suppress(OSError):
                return bool(urllib.request.urlopen(asked, timeout=60).status == 200)
            return False

        until(answers, f"the MLflow server did not answer (log: {folder}/mlflow.log)", 180)
        yield address


@contextlib.contextmanager
def ray_cluster(folder: Path) -> Iterator[str]:
    """A head node of Ray, started as `ray start` does; yields its address."""
    try:
        import ray

        from hydra_plugins import hydra_ray_launcher  # noqa: F401
    except ImportError as error:
        raise Missing(f"{error.name} is not installed; pip install 'tsexp[ray]'") from None
    port = free_port()
    start = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}",
        "--node-ip-address=127.0.0.1", "--include-dashboard=false", "--disable-usage-stats",
        "--num-cpus=2", f"--temp-dir={folder}/ray",
    ]  # fmt: skip
    with running(start, folder / "ray.log", cwd=folder):
        address = f"127.0.0.1:{port}"

        def answers() -> bool:
            ask = [sys.executable, "-m", "ray.scripts.scripts", "status", f"--address={address}"]
            return subprocess.run(ask, capture_output=True).returncode == 0

        until(answers, f"Ray {ray.__version__} did not start (log: {folder}/ray.log)", 120)
        yield address
