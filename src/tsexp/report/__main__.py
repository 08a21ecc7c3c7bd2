"""``python -m tsexp.report``.

From the store to frozen results, and from those to tables, figures and a page.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from tsexp.command import parser_of
from tsexp.config import redact, secret

PARTS = ("freeze", "tables", "figures", "page")
UI = "http://127.0.0.1:5000"
HELP = """\
From the MLflow store to what a paper needs. Nothing is trained or measured.

  freeze    the store's runs → FROZEN: results.parquet, results.csv, windows, predictions, channels,
            comparisons
  tables    FROZEN → REPORT/tables: datasets, dense, pruning, quantization, hybrids, company (what to
            deploy), comparisons (head to head), costs, machines, claims; as .tex, .md, .csv; notes.md
  figures   FROZEN → REPORT/figures: .pdf and .png; notes.md
  page      FROZEN → REPORT/index.html, interactive, without network

Without a part, all of them. Tables, figures and page are made of the frozen results alone; if there are none
yet, they are frozen first."""
EXAMPLES = f"""\
  tracking.uri=sqlite:////path/mlflow.db     the store (default: mlflow.db in this folder)
  tracking.experiment=tsexp                  which experiment of it
  paths.report=report                        REPORT
  paths.frozen=report/frozen                 FROZEN; to read from, a folder of such folders, too: a study in
                                             parts, or of several machines
  where="params.`data.name` = 'ACSF1'"       which runs to freeze, in MLflow's filter language
  ui=http://127.0.0.1:5001                   where the page's links find the MLflow UI (default: the store
                                             itself if it is a server, else {UI})

  python -m tsexp.report                     everything
  python -m tsexp.report freeze tables       new numbers, tables only
  python -m tsexp.report page ui=http://127.0.0.1:5001"""
GROUPS = ("tracking", "paths")
OWN = ("where", "ui")
"""Settings that are no keys of the configuration."""


def main(arguments: list[str] | None = None) -> None:
    """Make the parts that are asked for.

    End with status 2 for a wrong word, 1 if there is nothing to report.
    """
    parser = parser_of("report", "[freeze] [tables] [figures] [page] [key=value ...]", HELP, EXAMPLES)
    parser.add_argument("words", nargs="*", metavar="part or key=value", help=argparse.SUPPRESS)
    if arguments is None:
        secret.out_of_sight()
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        _end(2, f"{unknown[0]} is not an option; see --help")
    parts, settings, own = _sort(options.words)
    config = _configure(settings)
    ui = own.get("ui", config.tracking.uri if config.tracking.uri.startswith("http") else UI)
    if redact(ui) != ui:
        ui = re.sub(r"://\S*@", "://", ui)  # whoever follows a link is asked for a password of his own
    if not re.match(r"https?://[^/]", ui):
        _end(2, f"ui={ui} is no address of an MLflow UI; it begins with http:// or https://, as in ui={UI}")

    from tsexp.report.store import ReportError

    try:
        asked_for_store = "where" in own or any(not s.startswith("paths.") for s in settings)
        _make(parts, config, own.get("where"), ui.rstrip("/"), asked_for_store)
    except ReportError as error:
        _end(1, str(error))
    except ImportError as error:
        _end(1, f"a library is missing ({error}); install what a report needs: pip install 'tsexp[report]'")
    except OSError as error:
        _end(1, f"cannot write the report: {error}")
    except KeyboardInterrupt:
        _end(130, "interrupted; what was written is whole")


def _sort(words: list[str]) -> tuple[list[str], list[str], dict[str, str]]:
    """Words into parts (in the order in which they are made), settings, and those of `OWN`."""
    from tsexp.config import suggest

    known = [
        *PARTS,
        "tracking.uri=…",
        "tracking.experiment=…",
        "paths.report=…",
        "paths.frozen=…",
        "where=…",
        "ui=…",
    ]
    asked, settings, own = set(), [], {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals and word in PARTS:
            asked.add(word)
        elif equals and key in OWN:
            own[key] = value
        elif equals and key.split(".")[0] in GROUPS:
            settings.append(word)
        else:
            _end(
                2,
                f"{word} is not known here; allowed: "
                f"{', '.join(known)}{suggest(key, [k.rstrip('=…') for k in known])}",
            )
    return [p for p in PARTS if p in asked] or list(PARTS), settings, own


def _configure(settings: list[str]) -> Any:
    """Return the groups ``paths`` and ``tracking``: a report needs no more."""
    from tsexp import config as configs
    from tsexp.config.compose import composed

    try:
        return SimpleNamespace(**configs.places(composed(*settings)))
    except configs.ConfigError as error:
        _end(2, str(error))


def _make(parts: list[str], config: Any, where: str | None, ui: str, asked_for_store: bool) -> None:
    from tsexp.report import freezing
    from tsexp.report import frozen as freezer
    from tsexp.report.statistics import aggregate, notes
    from tsexp.report.store import connect

    folder = Path(config.paths.report)
    frozen_folder = Path(config.paths.frozen)
    written: dict[str, str] = {}
    if "freeze" in parts or not frozen_folder.exists():
        client = connect(config.tracking.uri)
        frozen = freezing.freeze(client, config.tracking.experiment, frozen_folder, where or "")
        written[f"{frozen_folder}/"] = f"{len(frozen.results)} records"
    else:
        frozen = freezer.load(frozen_folder)
        if asked_for_store:
            _check_same(frozen, config, where, frozen_folder)
    if "tables" in parts:
        from tsexp.report import tables

        files, said = tables.write(frozen, folder / "tables")
        written[f"{folder / 'tables'}/"] = f"{len(files)} files"
    else:
        said = notes(frozen, aggregate(frozen))
    if "figures" in parts:
        from tsexp.report import figures, points

        written[f"{folder / 'figures'}/"] = f"{len(figures.draw(frozen, folder / 'figures'))} files"
        said = [*said, *(f"in figures: {note}" for note in points.left_out(frozen))]
    if "page" in parts:
        from tsexp.report import page

        written[str(page.write(frozen, folder / "index.html", ui))] = (
            f"links to MLflow at {ui} (make ui; another address: ui=…)"
        )
    for place, what in written.items():
        print(f"wrote {place}  {what}")
    if said:
        print("\n".join(["missing, left out or mixed:", *(f"- {note}" for note in said)]))


def _check_same(frozen: Any, config: Any, where: str | None, folder: Path) -> None:
    """A store or a filter that is named means those runs, not others that were frozen before."""
    from tsexp.report.freezing import store_id
    from tsexp.report.store import ReportError

    asked = {"store": store_id(config.tracking.uri), "experiment": config.tracking.experiment} | (
        {"where": where} if where is not None else {}
    )
    if "parts" in frozen.about:
        raise ReportError(
            f"{folder} was frozen in parts, maybe from several stores; leave tracking.… and where "
            "out to read all of it"
        )
    for key, value in asked.items():
        if frozen.about.get(key) != value:
            raise ReportError(
                f"{folder} was frozen from another {'filter' if key == 'where' else key}; freeze again: "
                "python -m tsexp.report freeze …"
            )


def _end(status: int, message: str) -> NoReturn:
    print(f"tsexp.report: error: {redact(message)}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
