"""The command line: ``tsexp``, or ``python -m tsexp``.

Imports only what ``--help``, ``--cfg job`` and the shell's completion need; jobs and subcommands import the
rest.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import traceback
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from tsexp import __version__, command
from tsexp import config as configs
from tsexp.config import secret
from tsexp.system import signals

configs.register()


@hydra.main(version_base="1.3", config_path=str(configs.conf_dir()), config_name="config")
def main(cfg: DictConfig) -> tuple[float, ...] | None:
    """Run one experiment, or one job of a sweep.

    What a job of a search returns is what its sweeper learns from.
    """
    from tsexp.sweeps import jobs, sweep

    h = HydraConfig.get()
    folder = Path(h.runtime.output_dir)
    if h.mode == RunMode.MULTIRUN:
        parent, name = sweep.place(h.sweep.dir, h.job.num, secret.as_given(h.overrides.task))
        # The sweep goes on whatever happened; its end tells.
        return sweep.objectives(jobs.execute_apart(cfg, name, folder, parent), cfg, h.sweep.dir)
    if swept := h.sweeper.get("params"):
        what = ", ".join(swept)
        print(f"tsexp: without -m this is one job, not the sweep over {what}", file=sys.stderr)
    outcome = jobs.execute(cfg, None, folder, None)
    if outcome.status in ("refused", "skipped"):
        print(f"tsexp: error: {outcome.error}", file=sys.stderr)
        sys.exit(2)
    if outcome.status == "deployed":
        print(f"{outcome.name}: deployed, not measured (stop_after=deploy)")
        return None
    if not outcome.ok:
        sys.exit(1)
    _show(cfg, outcome)
    return None


def _show(cfg: DictConfig, outcome: object) -> None:
    from tsexp import report, tracking
    from tsexp.report.console import terminal
    from tsexp.sweeps import jobs, sweep

    assert isinstance(outcome, jobs.Outcome)
    assert outcome.run_id is not None
    checked = configs.parse(cfg)
    console = terminal()
    if outcome.status == "found":
        console.print("measured before: nothing was run (rerun=true measures again)")
    (row,) = report.read(tracking.store(checked.tracking), [outcome.run_id])
    console.print(report.table(row))
    console.print(sweep.ui_line(checked.tracking), soft_wrap=True, markup=False)


def cli() -> None:
    """Run a subcommand, answer the shell, or run `main`."""
    if sys.platform == "win32":
        sys.exit(
            "tsexp: error: this needs Linux or macOS (process groups and signals end a measurement); on "
            "Windows, use WSL"
        )
    signals.heed_sigterm()
    try:
        _cli()
    except signals.Terminated as error:
        print(f"tsexp: {error}; the same command goes on where it stopped", file=sys.stderr)
        sys.exit(signals.STATUS)


def _cli() -> None:
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # as python -m does: somebody's own code may lie here
    secret.out_of_sight()
    arguments = sys.argv[1:]
    if arguments[:1] == ["--version"]:
        print(f"tsexp {__version__}")
        return
    status = command.dispatch(arguments)
    if status is not None:
        sys.exit(status)
    if arguments and (word := arguments[0]).isidentifier():  # neither a setting nor an option, nor an address
        hint, known = configs.suggest(word, command.SUBCOMMANDS), ", ".join(command.SUBCOMMANDS)
        what = f"{word} is no subcommand{hint}; there are {known}; settings are key=value"
        print(f"tsexp: error: {what}", file=sys.stderr)
        sys.exit(2)
    completing = {"-sc", "--shell-completion"} & set(arguments)
    sys.argv[0] = "tsexp" if completing else command.called()  # which Hydra's usage and completion name
    if completing and "COMP_LINE" in os.environ:
        _complete(os.environ["COMP_LINE"])
    else:
        _run()


def _complete(line: str) -> None:
    """Print what may stand at the end of this command line, and never an error: a user is typing."""
    words, more = command.offered(line)
    print(*words, sep="\n")
    if more:
        with (
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stderr(nowhere),
            contextlib.suppress(Exception, SystemExit),
        ):
            main()


FOLDER = re.compile(r"(?:--config-d(?:ir?)?|-cd)(?:=(?P<place>.*))?", re.DOTALL)
"""What names a folder of configurations, as argparse takes it."""


def _options_first(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return a command line with what Hydra wants before settings in front, and the folders that it names."""
    options: list[str] = []
    rest: list[str] = []
    folders: list[str] = []
    words = iter(arguments)
    for word in words:
        found = FOLDER.fullmatch(word)
        if found and (place := found["place"] if "=" in word else next(words, None)) is not None:
            options.append(f"--config-dir={place}")
            folders.append(place)
        elif word in ("-m", "--multirun"):
            options.append(word)
        else:
            rest.append(word)
    return options + rest, folders


def _run() -> None:
    """Run `main`, with errors of the configuration in one line each instead of Hydra's frames."""
    wants_frames = "HYDRA_FULL_ERROR" in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its exceptions out instead of printing them
    # With the password in it; `sweep.ui_line` says the address.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    sys.argv[1:], folders = _options_first(secret.hidden(sys.argv[1:]))
    shown = io.StringIO() if {"-c", "--cfg"} & {a.split("=")[0] for a in sys.argv[1:]} else sys.stdout
    try:
        with contextlib.redirect_stdout(shown):
            for place in folders:
                configs.refuse_hidden(place)
            main()
    except configs.ConfigError as error:
        print(f"tsexp: error: {configs.redact(str(error))}", file=sys.stderr)
        sys.exit(error.status)
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print("tsexp: interrupted; the same command goes on where it stopped", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        from tsexp import cache
        from tsexp.sweeps import launchers

        known = configs.is_known(error)
        told = configs.explain(error) if known else launchers.refused(error) or cache.full(error, os.getcwd())
        text = f"tsexp: error: {told}" if told and not wants_frames else traceback.format_exc()
        print(configs.redact(text), file=sys.stderr)
        sys.exit(2 if known else 1)
    finally:
        if isinstance(shown, io.StringIO):  # what it shows may come from a file with a password
            print(configs.redact(shown.getvalue()), end="")


if __name__ == "__main__":
    cli()
