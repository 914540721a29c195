"""`python -m ckp.hub`: all configuration comes from HUB_* variables (see settings)."""

from __future__ import annotations

import asyncio
import logging
import sys

from ckp.clients.kube import Kube
from ckp.hub.app import MANAGER, serve
from ckp.hub.settings import Settings
from ckp.kits.errors import CkpError
from ckp.runtime import logs


async def _run(settings: Settings) -> None:
    await serve(settings, Kube(manager=MANAGER), asyncio.Event())


def main() -> int:
    """Run until a signal comes; 1 or 2 if the configuration is not right."""
    try:
        settings = Settings.from_environment()
        logs.configure(settings.log_level)
        # websockets logs every scanner that does not finish a handshake; we log those that matter ourselves.
        logging.getLogger("websockets").setLevel(logging.CRITICAL)
        asyncio.run(_run(settings))
    except CkpError as error:
        print(error.render(), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
