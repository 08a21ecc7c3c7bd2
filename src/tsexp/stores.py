"""Reaching a store, named as a user names it: MLflow's, which is asked once whether it answers, and Optuna's.

MLflow itself retries a dead server for minutes, and a dead database for as long.
"""

from __future__ import annotations

import os
import re
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsexp.config import SCHEMES, SQLITE, ConfigError, absolute_uri, redact, refuse_escapes

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

SECONDS = 5
"""What the first answer of a server may take.

Later ones may take MLflow's time: there is work to lose then."""
EXTRAS = {"postgresql": "postgres"}
"""Database → the extra of this package that brings its driver."""
TABLES = {"experiments", "runs", "metrics", "params", "tags"}
"""Some of MLflow's tables, by which its databases are known."""
DATABASES = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
"""Database → its usual port."""


def uri_of(store: str) -> str:
    """Return the absolute URI of a store, given as one, or as the path of a sqlite file or its folder.

    Raises
    ------
    ConfigError
        If it is the URI of something else, or a path that means another file where it is read as an address.
    """
    if "://" in store or store == "databricks":
        if store.split(":")[0].split("+")[0] not in SCHEMES:
            raise ConfigError(
                f"{redact(store)} is not a store MLflow takes; allowed: the path of a sqlite file, or "
                f"{', '.join(f'{s}:...' for s in SCHEMES)}"
            )
        return absolute_uri(store)
    path = Path(store).expanduser().absolute()
    file = path / "mlflow.db" if path.is_dir() or store.endswith("/") else path
    refuse_escapes("the store", str(file), "/ELSEWHERE/mlflow.db", also=r"|\?")
    return f"{SQLITE}{file}"


def file_of(uri: str) -> Path | None:
    """Return the file of a sqlite store; None of another one."""
    if not re.match(r"sqlite(\+\w+)?:///", uri):
        return None
    from sqlalchemy import make_url

    file = make_url(uri).database
    return Path(file) if file else None


def tables_of(file: Path) -> set[str]:
    """Return the names of the tables of a sqlite file, which is not changed.

    Raises
    ------
    ConfigError
        If it is none.
    """
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as db:
            return {name for (name,) in db.execute("select name from sqlite_master where type = 'table'")}
    except sqlite3.Error as error:
        raise ConfigError(f"{file} is not a store of MLflow: {error}") from None


def client(uri: str) -> Any:
    """Return an `mlflow.MlflowClient` on a store that answers.

    A sqlite file is not looked for: MLflow makes one.

    Raises
    ------
    ConfigError
        In one line, within 15 s, if a server or a database does not answer, or its driver is missing.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    scheme = uri.split(":")[0].split("+")[0]
    if scheme in DATABASES:
        _check_database(uri, scheme)
    import mlflow

    found = mlflow.MlflowClient(uri)
    if scheme in ("http", "https"):
        with _impatient():
            try:
                found.search_experiments(max_results=1)
            except Exception as error:  # of MLflow, or of its HTTP client
                raise ConfigError(silent(uri, error)) from None
    return found


def _check_database(uri: str, scheme: str) -> None:
    from sqlalchemy import create_engine, make_url
    from sqlalchemy.exc import SQLAlchemyError

    try:
        url = make_url(uri)
        url.get_dialect().import_dbapi()
    except ModuleNotFoundError as error:
        extra = f"'tsexp[{EXTRAS[scheme]}]'" if scheme in EXTRAS else error.name
        raise ConfigError(
            f"the store {redact(uri)} needs the driver {error.name}, which is not installed; install it: "
            f"pip install {extra}"
        ) from None
    except (SQLAlchemyError, ValueError) as error:
        raise ConfigError(f"the store {redact(uri)} is no address of a database: {error}") from None
    os.environ.setdefault("PGCONNECT_TIMEOUT", str(SECONDS))
    engine = create_engine(url)
    try:
        if url.host and "," not in url.host:  # of a local socket, or of several hosts, the driver knows more
            socket.create_connection((url.host, url.port or DATABASES[scheme]), SECONDS).close()
        engine.connect().close()
    except (OSError, SQLAlchemyError) as error:
        raise ConfigError(silent(uri, error)) from None
    finally:
        engine.dispose()


@contextmanager
def _impatient() -> Iterator[None]:
    changed = {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(SECONDS), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    before = {key: os.environ.get(key) for key in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


def silent(uri: str, error: Exception) -> str:
    """Tell in a line why a store does not answer."""
    text = str(getattr(error, "orig", error))  # what the driver says, without SQLAlchemy's advice
    status = re.search(r"error code (\d{3})", text)
    cause = re.search(r"\[Errno -?\d+\] ([\w ]+)|([\w ]*timed out)", text)
    if status and status[1] in ("401", "403"):
        said = (
            f"refuses (status {status[1]}); MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD let you in"
        )
    elif status:
        said = f"is no server of MLflow, or a proxy cannot reach it (status {status[1]})"
    elif "not in a valid JSON format" in text:  # a web page
        said = "is no server of MLflow, or a proxy answers in its place; is the address right?"
    else:
        why = (cause[1] or cause[2]).strip() if cause else " ".join(text.split())[:200]
        said = f"does not answer ({why}); is it running, and is the address right?"
    return redact(f"the store {uri} {said}")


def of_studies(storage: str) -> BaseStorage:
    """Open the storage of a search's studies.

    Parameters
    ----------
    storage
        A file, of Optuna's journal, or the URL of a database.

    Raises
    ------
    ConfigError
        If there is a password in it, or it cannot be opened.
    """
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if redact(storage) != storage:
        raise ConfigError(
            "hydra.sweeper.storage has a password in it, and would be written into files; leave it out, and "
            "give it as PGPASSWORD or in a password file (docs/security.md)"
        )
    try:
        if "://" in storage:
            return RDBStorage(storage, skip_table_creation=False)
        Path(storage).parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(storage))
    except Exception as error:  # of Optuna, of SQLAlchemy, of the driver, of the file system
        line = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ConfigError(
            f"hydra.sweeper.storage={storage} cannot be opened ({redact(line)}); give a file or the URL of a "
            "database (sqlite:///studies.db, postgresql://USER@HOST/DATABASE)"
        ) from None
