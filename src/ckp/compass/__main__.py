"""`python -m ckp.compass [--database PATH]`: all else is configured by COMPASS_* variables (see settings)."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from ckp.clients.kube import Kube
from ckp.compass.app import serve
from ckp.compass.settings import Settings
from ckp.kits.errors import CkpError
from ckp.runtime import logs


async def _run(settings: Settings) -> None:
    await serve(settings, Kube(manager="ckp-compass"), asyncio.Event())


def main() -> int:
    """Run until a signal comes. Exit code 1 or 2 if the configuration is wrong."""
    parser = argparse.ArgumentParser(prog="python -m ckp.compass", description="CKP's front door")
    parser.add_argument("--database", type=Path, help="SQLite file (COMPASS_DATABASE)")
    arguments = parser.parse_args()
    try:
        settings = Settings.from_environment()
        if arguments.database:
            settings = settings.model_copy(update={"database": arguments.database})
        logs.configure(settings.log_level)
        asyncio.run(_run(settings))
    except CkpError as error:
        print(error.render(), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
