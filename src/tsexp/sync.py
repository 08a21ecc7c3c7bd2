"""Deliver to the store the results that it did not take when they were measured."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from tsexp import config as configs
from tsexp import subcommand
from tsexp.command import called
from tsexp.config import ConfigError, PathsConfig, TrackingConfig, secret
from tsexp.config.compose import composed

SETTINGS = ("tracking.uri", "tracking.experiment", "tracking.artifacts", "paths.spool")


def main(arguments: list[str] | None = None) -> int:
    """Deliver what waits; return 1 if something still does, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog=called("sync"),
        usage="%(prog)s [--all] [key=value ...]",
        description=__doc__,
        epilog=f"keys: {', '.join(SETTINGS)}",
    )
    parser.add_argument("settings", nargs="*", metavar="key=value", help=argparse.SUPPRESS)
    parser.add_argument(
        "--all", action="store_true", help="to this store also what was measured for another one"
    )
    if arguments is None:
        secret.out_of_sight()
    asked = parser.parse_args(arguments)

    def work() -> int:
        for setting in asked.settings:
            if setting.partition("=")[0] not in SETTINGS or "=" not in setting:
                raise ConfigError(f"{setting} is not known here; allowed: {', '.join(SETTINGS)}")
        found = configs.places(composed(*asked.settings))
        if (
            any(s.startswith("paths.spool=") for s in asked.settings)
            and not Path(found["paths"].spool).is_dir()
        ):
            raise ConfigError(
                f"paths.spool={found['paths'].spool} is not there; give a folder of kept results"
            )
        return _sync(found["paths"], found["tracking"], asked.all)

    return subcommand.carried_out("sync", work, "what is not delivered is still kept")


def _sync(paths: PathsConfig, config: TrackingConfig, everything: bool) -> int:
    from tsexp.tracking import spool
    from tsexp.tracking.client import BOUND_S

    if not everything:
        spool.check_home(paths, config)
    others: dict[str, int] = {}
    delivered, left = 0, 0
    for folder, about in spool.kept(paths):
        if about is None:
            left += 1
            continue
        store = about["store"]
        if not everything and store != spool.address(config):
            name = f"tracking.uri={store['uri']} tracking.experiment={store['experiment']}"
            others[name] = others.get(name, 0) + 1
            continue
        try:
            spool.deliver(folder, replace(config, experiment=store["experiment"]), 0 if left else BOUND_S)
            delivered += 1
        except ConfigError as error:
            left += 1
            print(f"tsexp.sync: {error}", file=sys.stderr)
    store = configs.redact(config.uri)
    print(f"{delivered} result(s) delivered to {store}, {left} for it left in {paths.spool}")
    for name, count in others.items():
        print(f"{count} more for another store: {called('sync')} {name} (or --all: to this one)")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
