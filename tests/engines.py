"""Real engines on this machine: a SLURM cluster with two nodes, PostgreSQL, an MLflow server, a Ray cluster.

Each is a context manager that starts an engine in a folder, yields how to reach it, and leaves nothing behind.
`Missing` says why one cannot start here. Everything listens on 127.0.0.1 alone.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import time
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
    folder.chmod(0o755)
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
