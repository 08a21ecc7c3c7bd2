"""Where the files of a dataset are: at hand, in aeon's wheel, or in the archive."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from tsexp.config import ConfigError, DataConfig, suggest

LONGEST_NAME = 200
"""Bytes of a dataset's name: with what is added to it, a file's has 255 at most."""

SHOWN = 40
"""Characters of a wrong name that a message quotes."""


def find(config: DataConfig, data_dir: str | Path) -> tuple[Path, Path] | None:
    """Return the train and test file, or None if only a download can bring them.

    Looked for in this order: ``data.path``, ``paths.data``, aeon's own wheel.

    Raises
    ------
    ConfigError
        If ``data.path`` is given and does not hold ``NAME_TRAIN.ts`` and ``NAME_TEST.ts``, or the name can
        be none.
    """
    if not 0 < len(config.name.encode()) <= LONGEST_NAME or set(config.name) & {"/", "\0"}:
        shown = config.name if len(config.name) <= SHOWN else f"{config.name[:SHOWN]}…"
        raise ConfigError(
            f"data.name={shown!r} is no name of a dataset; it has 1 to {LONGEST_NAME} bytes and no slash "
            "(data.path says where the files are)"
        )
    if config.path is not None:
        return _pair_in(Path(config.path), config.name)
    for root in (Path(data_dir), _wheel_dir()):
        train = root / config.name / f"{config.name}_TRAIN.ts"
        test = root / config.name / f"{config.name}_TEST.ts"
        if train.is_file() and test.is_file():
            return train, test
    return None


def ensure(config: DataConfig, data_dir: str | Path) -> tuple[Path, Path]:
    """Return the train and test file, downloading them if they are nowhere.

    Raises
    ------
    ConfigError
        If that fails; names the places looked in.
    """
    return find(config, data_dir) or _download(config, Path(data_dir))


def _wheel_dir() -> Path:
    from importlib.util import find_spec

    spec = find_spec("aeon")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "datasets" / "data"


def _known(data_dir: Path) -> set[str]:
    """Names of the datasets that are here, and of those that aeon can download."""
    from aeon.datasets.tsc_datasets import tsc_zenodo

    here = {file.parent.name for root in (data_dir, _wheel_dir()) for file in root.glob("*/*_TRAIN.ts")}
    return here | set(tsc_zenodo)


def _pair_in(folder: Path, name: str) -> tuple[Path, Path]:
    if not os.path.isdir(folder):  # of a path that is too long, too, where `Path` raises
        raise ConfigError(
            f"data.path={folder} is not a folder; give one that holds NAME_TRAIN.ts and NAME_TEST.ts"
        )
    trains = sorted(folder.glob("*_TRAIN.ts"))
    named = [t for t in trains if t.name == f"{name}_TRAIN.ts"]
    if not named:
        seen = ", ".join(t.name for t in trains) or "none"
        raise ConfigError(
            f"data.path={folder} must hold {name}_TRAIN.ts and {name}_TEST.ts, or give another data.name; "
            f"found: {seen}"
        )
    test = folder / named[0].name.replace("_TRAIN.ts", "_TEST.ts")
    if not test.is_file():
        raise ConfigError(f"data.path={folder} holds {named[0].name} but not {test.name}")
    return named[0], test


def _download(config: DataConfig, data_dir: Path) -> tuple[Path, Path]:
    from aeon.datasets import load_classification

    target, made = data_dir / config.name, not data_dir.exists()
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{config.name}-", dir=data_dir) as scratch:
            load_classification(config.name, extract_path=scratch)
            files = list((Path(scratch) / config.name).iterdir())  # whole by now: aeon has read them
            target.mkdir(exist_ok=True)
            for file in files:
                file.replace(target / file.name)
    except Exception as error:  # URL, zip, OS and value errors of aeon; all mean the same to the user
        if made:
            with contextlib.suppress(OSError):
                data_dir.rmdir()
        raise ConfigError(
            f"dataset {config.name} is nowhere{suggest(config.name, _known(data_dir))}. "
            f"Looked in: {target} (paths.data, environment variable TSEXP_DATA{', not there' * made}), "
            f"{_wheel_dir() / config.name} (aeon's wheel), aeon's download ({type(error).__name__}: "
            f"{str(error)[:100]}). Put {config.name}_TRAIN.ts and {config.name}_TEST.ts into {target}, or "
            "give data.path=FOLDER, or check the name against https://timeseriesclassification.com"
        ) from None
    found = find(config, data_dir)
    if found is None:
        raise ConfigError(
            f"aeon downloaded {config.name} into {target}, but {config.name}_TRAIN.ts and _TEST.ts are not "
            "there"
        )
    return found
