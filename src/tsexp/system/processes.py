"""Processes that start warm: a server has everything imported, and what runs is a fork of it.

Where forking is not safe, a fresh interpreter does the same. There is one server for a sweep: its starter
hands its address on in the environment, to launchers' workers and to the forks themselves.
(`multiprocessing`'s own fork server cannot be used from its forks: they start another.) It imports and does
nothing else, so that a fork finds the libraries as an import leaves them; their pools of threads start in the
fork. It ends with the process that started it, and everything it forked with it.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import pkgutil
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from tsexp.config import redact
from tsexp.system import alive
from tsexp.system.signals import STATUS, Terminated, heed_sigterm

ADDRESS = "TSEXP_SERVER"
"""Environment variable: the server's socket."""
LONG = 70
GRACE_S = 10.0
"""A process whose caller is gone is interrupted, and killed so much later."""
PINNED = {
    **dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"
    ),
    **{"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"},
}
"""A caller that wants more threads asks PyTorch or the runtime; a pool that starts at import would not
survive the fork. Threads that wait sleep: if they spin, which is OpenMP's default, waiting counts as work and
goes on in the window of whoever is measured next (docs/log.md, 2026-12-02)."""
PR_SET_PDEATHSIG = 1
"""Linux kills a fork when the server dies, however it does."""
TERMINATE = b"T"
"""What a caller that was terminated says before it goes; one that goes without a word was interrupted."""
FORKS = sys.platform == "linux"
"""Elsewhere, system libraries do not bear a fork without an exec."""


class ServerGone(RuntimeError):
    """The server died; what it forked died with it."""


_address: str | None = None
"""Of the server that this process started."""


def start(preload: Sequence[str]) -> None:
    """Start the server, unless there is one already; return at once, while it imports.

    Parameters
    ----------
    preload
        Modules to import beforehand; those that are not installed are left out.
    """
    global _address
    if not FORKS or _answers(os.environ.get(ADDRESS)):
        return
    if ADDRESS not in os.environ and _answers(_address):  # the environment was put back (`guest`)
        os.environ[ADDRESS] = str(_address)
        return
    # The address of a socket takes 107 bytes, and some clusters have long names for temporary folders.
    near = None if len(os.fsencode(tempfile.gettempdir())) < LONG else alive.SHORT
    folder = tempfile.mkdtemp(prefix="tsexp-server-", dir=near)  # 0700: nobody else may ask
    alive.own(Path(folder))
    address = f"{folder}/socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(256)
        command = [sys.executable, "-m", "tsexp.system.processes", str(listener.fileno()), *preload]
        # A group of its own: Ctrl-C is for the caller, who passes it on. Its input ends when this process
        # does, however it does.
        server = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            env=_public() | PINNED | {ADDRESS: address},
            pass_fds=[listener.fileno()],
            process_group=0,
        )
    os.environ[ADDRESS] = _address = address
    atexit.register(_stop, server, folder, os.getpid())


def _public() -> dict[str, str]:
    """The environment without what lets one into stores: /proc shows for ever what a process began with.

    Whom it is for gets it with the request.
    """
    from tsexp.config.secret import CREDENTIALS

    return {name: value for name, value in os.environ.items() if name not in CREDENTIALS}


def _stop(server: subprocess.Popen[bytes], folder: str, owner: int) -> None:
    if os.getpid() == owner:
        assert server.stdin is not None
        server.stdin.close()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _forget() -> None:
    """Its socket may answer for a moment after it died."""
    global _address
    _address = None
    os.environ.pop(ADDRESS, None)


def _answers(address: str | None) -> bool:
    if address is None:
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(address)
        except OSError:
            return False
    return True


def run(
    target: str,
    *arguments: str,
    preload: Sequence[str] = (),
    fork: bool = True,
    without: Sequence[str] = (),
    temporary: str | None = None,
) -> int:
    """Call a function in a process of its own and block until it ends.

    Parameters
    ----------
    target
        ``module:function``; returns the exit status, None for 0.
    *arguments
        Its arguments.
    preload
        For `start`, if there is no server yet.
    fork
        False: in a fresh interpreter, for libraries that a fork may break (CUDA).
    without
        Environment variables that it does not inherit.
    temporary
        Its ``TMPDIR``: for what libraries leave there if they are killed.

    Returns
    -------
    int
        Exit status; negative: the signal that killed it. Whatever else it started is killed when it ends, and
        when the caller is.

    Raises
    ------
    ServerGone
        If the server died meanwhile.
    """
    environment = {name: value for name, value in os.environ.items() if name not in without}
    environment |= {} if temporary is None else {"TMPDIR": temporary}
    if not (fork and FORKS):
        return _run_fresh(target, arguments, environment)
    start(preload)
    request = {
        "target": target,
        "arguments": arguments,
        "folder": os.getcwd(),
        "environ": environment,
        "path": sys.path,
    }
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    answer = b""
    with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(ConnectionError):
        connection.connect(os.environ[ADDRESS])
        message = json.dumps(request).encode() + b"\n"
        sent = socket.send_fds(connection, [message], [1, 2])
        connection.sendall(message[sent:])
        try:
            answer = connection.makefile("rb").readline()  # blocks: nothing may disturb what it waits for
        except (Terminated, SystemExit):  # submitit leaves so when SLURM takes a job back
            connection.sendall(TERMINATE)
            raise
    if not answer:
        _forget()  # the next call starts another
        raise ServerGone(
            "the process that all others are forked from is gone (out of memory?); the same command goes on "
            "where it stopped"
        )
    return int(answer)


def _run_fresh(target: str, arguments: Sequence[str], environment: dict[str, str]) -> int:
    command = [sys.executable, "-m", "tsexp.system.processes", target, *arguments]
    # Its input ends when this process does, however it does.
    process = subprocess.Popen(command, env=environment | PINNED, stdin=subprocess.PIPE, process_group=0)
    try:
        return process.wait()
    except (KeyboardInterrupt, Terminated, SystemExit) as error:
        process.send_signal(signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
        raise
    finally:
        _kill_group(process.pid)
        assert process.stdin is not None
        process.stdin.close()


def _go_with_the_caller() -> None:
    """Be killed, with all that was started, when standard input ends; there is none for anybody else."""
    caller = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)

    def watch() -> None:
        os.read(caller, 1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def fork_here(function: Callable[[], int]) -> int:
    """Call a function in a fork of this very process, with all that lies in its memory; block until it ends.

    For objects that no file holds. What libraries started in this process must not stop them there:

    - The fork calls in a thread of its own. GNU OpenMP keeps a pool of threads for each thread that computes;
      that of a forked one is gone, and waiting for it never ends.
    - It is a fork of a fork. Numba ends a process whose parent has used GNU OpenMP, which is just that case.
    - Its ``__main__`` forgets its file: a helper that is spawned there would run the caller's script again.

    Parameters
    ----------
    function
        Returns the exit status.

    Returns
    -------
    int
        Exit status; negative: the signal that killed it. Whatever else it started is killed when it ends.

    Raises
    ------
    RuntimeError
        Where a fork without an exec is not safe (`FORKS`).
    """
    if not FORKS:
        raise RuntimeError(f"objects in memory are measured in forks, which {sys.platform} does not bear")
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, from Python 3.12 on: see above
        pid = os.fork()
    if pid == 0:
        _become_fork(function)
    try:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except BaseException:
        _kill_group(pid)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
        raise
    _kill_group(pid)
    return code


def _become_fork(function: Callable[[], int]) -> NoReturn:
    """In the fork: fork again, pass on how that ended; in the fork's fork, call."""
    status = 1
    try:
        os.setpgid(0, 0)
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        second = os.fork()
        if second:
            status = os.waitstatus_to_exitcode(os.waitpid(second, 0)[1])
            if status < 0:  # end as it did
                with contextlib.suppress(OSError):
                    signal.signal(-status, signal.SIG_DFL)
                os.kill(os.getpid(), -status)
        else:
            status = _call_in_thread(function)
    finally:
        os._exit(status & 255)


def _call_in_thread(function: Callable[[], int]) -> int:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    gc.freeze()
    # A notebook's streams hand over to a thread that is not here.
    sys.stdout = sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    ended: list[int] = []
    with nameless_main():
        thread = threading.Thread(target=lambda: ended.append(function()))
        thread.start()
        thread.join()
    return ended[0] if ended else 1


@contextmanager
def nameless_main() -> Iterator[None]:
    """Hide where ``__main__`` comes from: a helper that is spawned within would run that script again."""
    main: Any = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), vars(main).pop("__file__", None)
    main.__spec__ = None
    try:
        yield
    finally:
        main.__spec__ = spec
        if file is not None:
            main.__file__ = file


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


@dataclass
class _Server:
    """What is going on: the forks, by the connection of the caller that waits for them."""

    listener: socket.socket
    selector: selectors.DefaultSelector = field(default_factory=selectors.DefaultSelector)
    waiting: dict[socket.socket, int] = field(default_factory=dict)
    left: dict[int, float] = field(default_factory=dict)
    """Forks whose caller is gone → when they are killed."""

    def serve(self) -> None:
        """Until the process that started the server ends, and all forks have."""
        bell, ring = socket.socketpair()
        for end in (bell, ring):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for ignored in (signal.SIGINT, signal.SIGTERM):  # SLURM sends it to all: the forks have work to end
            signal.signal(ignored, signal.SIG_IGN)
        signal.set_wakeup_fd(ring.fileno(), warn_on_full_buffer=False)
        for readable in (self.listener, bell, sys.stdin):
            self.selector.register(readable, selectors.EVENT_READ)
        open_ = True
        while open_ or self.waiting or self.left:
            soonest = min(self.left.values(), default=None)
            wait_s = None if soonest is None else max(0.0, soonest - time.monotonic())
            for key, _ in self.selector.select(wait_s):
                ready: Any = key.fileobj
                if ready is self.listener:
                    self._take()
                elif ready is bell:
                    bell.recv(4096)
                elif ready is sys.stdin:
                    open_ = False
                    self.selector.unregister(sys.stdin)
                    self.selector.unregister(self.listener)
                    for connection in list(self.waiting):
                        self._leave(connection)
                elif ready in self.waiting:  # after the request, nothing comes but this: the caller goes
                    self._leave(ready, signal.SIGTERM if _last_word(ready) == TERMINATE else signal.SIGINT)
            self._reap()

    def _take(self) -> None:
        connection, _ = self.listener.accept()
        message, streams, *_ = socket.recv_fds(connection, 65536, 2)
        while message and not message.endswith(b"\n"):
            part = connection.recv(65536)
            message = message + part if part else b""
        if not message:  # only asked whether somebody is there
            connection.close()
            return
        if not message.endswith(b"\n"):  # its caller died as it asked
            for stream in streams:
                os.close(stream)
            connection.close()
            return
        try:
            pid = os.fork()
        except OSError as error:  # of too many processes, or too little memory, this call alone fails
            print(f"a process could not be started: {error.strerror}", file=sys.stderr)
            pid = -1
        if pid == 0:
            connection.close()
            self._become(json.loads(message), streams)
        for stream in streams:
            os.close(stream)
        if pid < 0:
            with contextlib.suppress(OSError):
                connection.sendall(b"1\n")
            connection.close()
            return
        self.waiting[connection] = pid
        self.selector.register(connection, selectors.EVENT_READ)

    def _become(self, request: dict[str, Any], streams: Sequence[int]) -> None:
        """In the fork: forget the server, be what was asked for."""
        status = 1
        try:
            os.setpgid(0, 0)
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            heed_sigterm()
            self.selector.close()
            for held in (self.listener, *self.waiting):
                held.close()
            for stream, number in zip(streams, (1, 2), strict=True):
                os.dup2(stream, number)
                os.close(stream)
            nothing = os.open(os.devnull, os.O_RDONLY)
            os.dup2(nothing, 0)
            os.chdir(request["folder"])
            os.environ.clear()
            os.environ.update(request["environ"] | PINNED)
            tempfile.tempdir = None  # the server has asked already, for its own
            sys.path[:] = request["path"]
            status = call(request["target"], request["arguments"])
        finally:
            os._exit(status)

    def _leave(self, connection: socket.socket, how: signal.Signals = signal.SIGINT) -> None:
        pid = self.waiting.pop(connection)
        self.selector.unregister(connection)
        connection.close()
        self.left[pid] = time.monotonic() + GRACE_S
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, how)

    def _reap(self) -> None:
        for pid, deadline in self.left.items():
            if time.monotonic() >= deadline:
                _kill_group(pid)
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = ended
                _kill_group(pid)
                self.left.pop(pid, None)
                for connection in [c for c, p in self.waiting.items() if p == pid]:
                    del self.waiting[connection]
                    self.selector.unregister(connection)
                    with contextlib.suppress(OSError):
                        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
                    connection.close()


def _last_word(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1)
    except OSError:
        return b""


def call(target: str, arguments: Sequence[str]) -> int:
    """Call ``module:function`` and return an exit status, whatever it raises."""
    try:
        return int(pkgutil.resolve_name(target)(*arguments) or 0)
    except KeyboardInterrupt:
        return 130
    except Terminated:
        return STATUS
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        print(redact(traceback.format_exc()), file=sys.stderr)
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def main(arguments: Sequence[str]) -> int:
    """``SOCKET MODULE…``: be the server; ``MODULE:FUNCTION ARGUMENT…``: be one process."""
    if ":" in arguments[0]:
        _go_with_the_caller()
        heed_sigterm()
        return call(arguments[0], arguments[1:])
    from tsexp.system.quiet import quiet

    with socket.socket(fileno=int(arguments[0])) as listener:
        with quiet():
            for name in arguments[1:]:
                with contextlib.suppress(ImportError):
                    importlib.import_module(name)
        gc.collect()
        gc.freeze()  # a collection in a fork would copy every page that it looks at
        address = Path(os.environ[ADDRESS])
        try:
            _Server(listener).serve()
        finally:
            shutil.rmtree(address.parent, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
