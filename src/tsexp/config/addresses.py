"""Names of stores and folders as others will read them: made absolute, and refused where they are misread."""

from __future__ import annotations

import re
from pathlib import Path

from tsexp.config.errors import ConfigError, redact

SQLITE = "sqlite:///"
SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks")


def wrong_store(uri: str) -> list[str]:
    """Return what is wrong with the URI of a store: one line, or none."""
    if uri.split(":")[0].split("+")[0] in SCHEMES:
        return []
    allowed = ", ".join(f"{s}:..." for s in SCHEMES)
    return [f"tracking.uri={redact(uri)} is not a store MLflow takes; allowed: {allowed}"]


def absolute_uri(uri: str) -> str:
    """A sqlite file is named from the working folder.

    Raises
    ------
    ConfigError
        If its name means another file where it is read as an address.
    """
    if not uri.startswith(SQLITE):
        return uri
    name, mark, query = uri.removeprefix(SQLITE).partition("?")
    path = str(Path(name).absolute())
    if mark and "=" not in query:  # a folder's, not that of options
        path, mark, query = path + mark + query, "", ""
    refuse_escapes("tracking.uri", path, "tracking.uri=sqlite:////ELSEWHERE/mlflow.db", also=r"|\?")
    return f"{SQLITE}{path}{mark}{query}"


def absolute_place(place: str | None) -> str | None:
    """A folder is made absolute; the URI of something else stays.

    Raises
    ------
    ConfigError
        As `absolute_uri`.
    """
    if place is None or ":" in place:
        return place
    path = str(Path(place).expanduser().absolute())
    refuse_escapes("tracking.artifacts", path, "tracking.artifacts=/ELSEWHERE")
    return path


def refuse_escapes(key: str, path: str, instead: str, also: str = "") -> None:
    """Refuse what SQLAlchemy and MLflow, who read a path as an address, take for that of something else."""
    found = re.search("%[0-9A-Fa-f]{2}" + also, path)
    if found:
        raise ConfigError(
            f"{key} is {path}, in which {found[0]} would be read as something else, so that results would "
            f"lie in another folder, or be lost; work in a folder without it, or name one: {instead}"
        )
