"""`python -m ckp.compass [--database PATH]`: all else comes from COMPASS_* variables (see settings)."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from dataclasses import replace
from pathlib import Path

import structlog

from ckp.clients.kube import Kube
from ckp.compass.app import serve
from ckp.compass.settings import Settings
from ckp.kits.errors import CkpError


async def _run(settings: Settings) -> None:
    await serve(settings, Kube(manager="ckp-compass"), asyncio.Event())


def main() -> int:
    """Run until a signal comes; 1 or 2 if the configuration is not right."""
    parser = argparse.ArgumentParser(prog="python -m ckp.compass", description="CKP's front door")
    parser.add_argument("--database", type=Path, help="SQLite file (COMPASS_DATABASE)")
    arguments = parser.parse_args()
    try:
        settings = Settings.from_environment()
        if arguments.database:
            settings = replace(settings, database=arguments.database)
        level = logging.getLevelNamesMapping().get(settings.log_level.upper(), logging.INFO)
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        structlog.configure(
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso"),
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(level),
        )
        asyncio.run(_run(settings))
    except CkpError as error:
        print(error.render(), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
