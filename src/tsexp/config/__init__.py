"""The configuration: typed, checked before any work starts, and what a result is known by.

`schema` has the keys and their ranges, `parsing` makes a checked `Config` of what Hydra composed, and
`fingerprint` says what a result depends on. `compose` (which imports Hydra, and is imported by itself) and
`shipped` are about the files in ``conf/``; `own` is about somebody's own code, `addresses` and `secret` about
stores, `cores` about threads, `errors` and `hydra_errors` about words for people.
"""

from tsexp.config.addresses import SCHEMES, SQLITE, absolute_place, absolute_uri, refuse_escapes
from tsexp.config.cores import at_once, check_threads, usable_cores
from tsexp.config.errors import ConfigError, Unsupported, first_line, redact, suggest
from tsexp.config.fingerprint import digest, flat, identity, own_digests
from tsexp.config.hydra_errors import PLUGINS, explain, is_known
from tsexp.config.own import OWN_CODE, like_own, look_up, must_be_trusted, own_code, trust
from tsexp.config.parsing import parse, places
from tsexp.config.schema import (
    CALIBRATED,
    MODES,
    NOT_ASKED,
    Config,
    DataConfig,
    MeasureConfig,
    ModelConfig,
    PathsConfig,
    PruneConfig,
    QuantConfig,
    RuntimeConfig,
    TrackingConfig,
    TrainConfig,
    choice,
    family_module,
    like,
    number,
)
from tsexp.config.shipped import conf_dir, refuse_hidden, register

__all__ = [
    "CALIBRATED",
    "MODES",
    "NOT_ASKED",
    "OWN_CODE",
    "PLUGINS",
    "SCHEMES",
    "SQLITE",
    "Config",
    "ConfigError",
    "DataConfig",
    "MeasureConfig",
    "ModelConfig",
    "PathsConfig",
    "PruneConfig",
    "QuantConfig",
    "RuntimeConfig",
    "TrackingConfig",
    "TrainConfig",
    "Unsupported",
    "absolute_place",
    "absolute_uri",
    "at_once",
    "check_threads",
    "choice",
    "conf_dir",
    "digest",
    "explain",
    "family_module",
    "first_line",
    "flat",
    "identity",
    "is_known",
    "like",
    "like_own",
    "look_up",
    "must_be_trusted",
    "number",
    "own_code",
    "own_digests",
    "parse",
    "places",
    "redact",
    "refuse_escapes",
    "refuse_hidden",
    "register",
    "suggest",
    "trust",
    "usable_cores",
]
