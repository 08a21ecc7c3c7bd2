"""What a result depends on, of all that was asked: by it cache, store and report know an experiment."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, fields
from typing import Any

from tsexp.config.errors import ConfigError
from tsexp.config.own import like_own, own_modules
from tsexp.config.schema import NOT_ASKED, Config, family_module


def digest(content: Any) -> str:
    """Content address of anything JSON can hold: 16 hex digits of the SHA-256 of its canonical form."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def flat(node: Any) -> dict[str, Any]:
    """Flatten nested dataclasses into dotted keys, as they are logged: ``{"prune.ratio": 0.3, ...}``."""
    out: dict[str, Any] = {}

    def walk(value: Any, key: str) -> None:
        if isinstance(value, dict):
            for k, v in value.items():
                walk(v, f"{key}.{k}" if key else k)
        else:
            out[key] = value

    walk(asdict(node), "")
    return out


_texts: dict[str, tuple[Any, str]] = {}
"""Somebody's own module → its import, and the digest of its text then."""


def own_digests(*names: str) -> dict[str, str]:
    """Return name → digest of its module's text, for those names that are somebody's own code.

    Changed code makes another result.

    Raises
    ------
    ConfigError
        If it is in no file, or that has been changed since it was imported: it is not what runs.
    """
    found = {}
    for name, (module, file) in own_modules(*names).items():
        text = digest(file.read_text())
        known = _texts.get(module.__name__)
        if known is None or known[0] is not module.__spec__:  # a new import, or a reload
            _texts[module.__name__] = module.__spec__, text
        elif known[1] != text:
            raise ConfigError(
                f"{file} was changed after it was imported, so that this process still runs what it was: "
                f"start Python anew, or importlib.reload({module.__name__})"
            )
        found[name] = text
    return found


def own_names(asked: dict[str, Any]) -> list[str]:
    """Return all values that name somebody's own code, ``module:object``."""
    return like_own({group: of for group, of in asked.items() if group not in ("data", "tracking", "paths")})


def identity(cfg: Config) -> dict[str, Any]:
    """Return what a result depends on, of everything that was asked: one spelling for all that ask the same.

    Cache, store and report know an experiment by this and by nothing else. Own code counts by its text.
    """
    asked: dict[str, Any] = {}
    for key, value in flat(cfg).items():
        if not key.startswith(NOT_ASKED):
            group, _, name = key.rpartition(".")
            (asked.setdefault(group, {}) if group else asked)[name] = value
    for f in fields(cfg):
        group = getattr(cfg, f.name)
        if hasattr(group, "asked"):
            asked[f.name] = group.asked()
    if not cfg.model.gradient:  # it is not tuned either
        del asked["train"]
        tuning = ("finetune_", "distill", "temperature")
        asked["prune"] = {k: v for k, v in asked["prune"].items() if not k.startswith(tuning)}
    if version := getattr(family_module(cfg.model.family), "VERSION", 0):
        asked["family_version"] = version
    return asked | {"code": own_digests(*own_names(asked))}
