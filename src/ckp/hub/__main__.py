"""`python -m ckp.hub`: all configuration comes from HUB_* variables (see settings)."""

from __future__ import annotations

import asyncio
import logging
import sys

import structlog

from ckp.clients.kube import Kube
from ckp.hub.app import MANAGER, serve
from ckp.hub.settings import Settings
from ckp.kits.errors import CkpError


async def _run(settings: Settings) -> None:
    await serve(settings, Kube(manager=MANAGER), asyncio.Event())


def main() -> int:
    """Run until a signal comes; 1 or 2 if the configuration is not right."""
    try:
        settings = Settings.from_environment()
        level = logging.getLevelNamesMapping().get(settings.log_level.upper(), logging.INFO)
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        # websockets tells of every scanner that does not finish a handshake; our own lines tell of those that matter.
        logging.getLogger("websockets").setLevel(logging.CRITICAL)
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
