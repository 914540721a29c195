"""`python -m ckp.compass [--database PATH] [--schema-back]`: all else is configured by COMPASS_* variables (see settings)."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from ckp.clients.kube import Kube
from ckp.compass.app import place_of, serve
from ckp.compass.settings import Settings
from ckp.compass.store.schema import take_back
from ckp.kits.errors import CkpError
from ckp.runtime import logs


async def _run(settings: Settings) -> None:
    await serve(settings, Kube(manager="ckp-compass"), asyncio.Event())


def main() -> int:
    """Run until a signal comes. Exit code 1 or 2 if the configuration is wrong."""
    parser = argparse.ArgumentParser(prog="python -m ckp.compass", description="CKP's front door")
    parser.add_argument("--database", type=Path, help="SQLite file (COMPASS_DATABASE)")
    parser.add_argument("--schema-back", action="store_true", help="take the database's schema one version back, and end")
    arguments = parser.parse_args()
    try:
        settings = Settings.from_environment()
        if arguments.database:
            settings = settings.model_copy(update={"database": arguments.database, "database_url_file": None})
        logs.configure(settings.log_level)
        if arguments.schema_back:
            print("schema {} is {} now".format(*take_back(place_of(settings))))
            return 0
        asyncio.run(_run(settings))
    except CkpError as error:
        print(error.render(), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
