"""`python -m ckp.compass [--database PATH] [--schema-up|--schema-back [TO]|--dump|--load RESTORE]`: all else is by COMPASS_* variables (see settings)."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import os
import sys
from pathlib import Path
from typing import Any, BinaryIO

from ckp.clients.kube import Kube
from ckp.compass.app import place_of, serve
from ckp.compass.settings import Settings
from ckp.compass.store.copying import dump, load
from ckp.compass.store.database import Database
from ckp.compass.store.schema import head, take_back
from ckp.kits.clock import SystemClock
from ckp.kits.errors import CkpError
from ckp.runtime import logs


class Digested(io.RawIOBase):
    """Passes bytes on, and keeps their SHA-256."""

    def __init__(self, out: BinaryIO) -> None:
        super().__init__()
        self.digest, self._out = hashlib.sha256(), out

    def writable(self) -> bool:
        """Whether it takes bytes: it does."""
        return True

    def write(self, data: Any) -> int:
        """Take some bytes."""
        self.digest.update(data)
        self._out.write(data)
        return len(data)


def _dump(settings: Settings) -> None:
    """A copy of the database to standard output, and its SHA-256 behind it: who reads it knows whether all of it came."""
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # what else is printed must not stand within it
        digested = Digested(out)
        dump(place_of(settings), io.BufferedWriter(digested, 1 << 18))
        out.write(digested.digest.digest())


async def _run(settings: Settings) -> None:
    await serve(settings, Kube(manager="ckp-compass"), asyncio.Event())


async def _bring_up(settings: Settings) -> None:
    """As it is done when Compass starts, and nothing else."""
    database = Database(place_of(settings), SystemClock())
    await database.open()
    await database.close()


def main() -> int:
    """Run until a signal comes. Exit code 1 or 2 if the configuration is wrong."""
    parser = argparse.ArgumentParser(prog="python -m ckp.compass", description="CKP's front door")
    parser.add_argument("--database", type=Path, help="SQLite file (COMPASS_DATABASE)")
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--schema-up", action="store_true", help="bring the database's schema up to date, and end")
    one.add_argument("--schema-back", metavar="TO", nargs="?", const="", help="take the database's schema one version back, or back to TO, and end")
    one.add_argument("--dump", action="store_true", help="write a copy of the database (PostgreSQL) to standard output, and end")
    one.add_argument("--load", metavar="RESTORE", help="put a copy from standard input back, for the restore that is called so, and end")
    parser.add_argument("--replace", action="store_true", help="with --load: also over data that is there")
    arguments = parser.parse_args()
    try:
        settings = Settings.from_environment()
        if arguments.database:
            settings = settings.model_copy(update={"database": arguments.database, "database_url_file": None})
        logs.configure(settings.log_level)
        if arguments.schema_up:
            asyncio.run(_bring_up(settings))
            print(f"schema {head()}, or a newer one that serves this version")
            return 0
        if arguments.schema_back is not None:
            print("schema {} is {} now".format(*take_back(place_of(settings), arguments.schema_back)))
            return 0
        if arguments.dump:
            _dump(settings)
            return 0
        if arguments.load:
            loaded = load(place_of(settings), sys.stdin.buffer, restore=arguments.load, replace=arguments.replace)
            print(f"{sum(loaded.rows.values())} rows were put back" if loaded.rows else "this restore has put the data back before")
            return 0
        asyncio.run(_run(settings))
    except CkpError as error:
        print(error.render(), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
