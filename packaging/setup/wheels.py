"""Takes the Python packages out of a file of `ckp dist export`: `wheels.py FILE FOLDER`.

Nothing has looked at the file's signature yet, and root runs this. So only regular files with a wheel's plain name come out, each directly
into the new folder and within bounds; anything else below `wheels/` stops it. What is in them is pip's to judge, by the hashes of this
checkout's lock. The standard library is all that there is.
"""

from __future__ import annotations

import re
import resource
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import IO

NAME = re.compile(r"wheels/([A-Za-z0-9][A-Za-z0-9._+-]*\.whl)")
MAX_FILES = 2000
MAX_FILE = 1 << 30
MAX_ALL = 4 << 30
MEMORY = 1 << 30
"""Of this process: tarfile reads long names as a whole, whatever length they say."""


class Refused(Exception):
    """A sentence why not."""


def unpack(stream: IO[bytes], folder: Path) -> int:
    """Write the wheels in a tar to `folder`; how many there are."""
    total = 0
    names: set[str] = set()
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            if not member.name.startswith("wheels/"):
                continue
            match = NAME.fullmatch(member.name)
            if not match:
                raise Refused(f"it holds {member.name!r}, which is no plain name of a wheel")
            if not member.isreg() or member.issparse():
                raise Refused(f"{member.name} in it is no regular file")
            if match[1] in names:
                raise Refused(f"{member.name} is there twice")
            names.add(match[1])
            total += member.size
            if member.size > MAX_FILE or total > MAX_ALL:
                raise Refused(f"its wheels are larger than {MAX_FILE >> 20} MiB each or {MAX_ALL >> 20} MiB together")
            if len(names) > MAX_FILES:
                raise Refused(f"it holds more than {MAX_FILES} wheels")
            source, target = archive.extractfile(member), folder / match[1]
            assert source is not None
            with target.open("xb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
            target.chmod(0o644)
    return len(names)


def main(file: str, folder: Path) -> int:
    """Unpack, or say why not and leave nothing."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    folder.mkdir()
    try:
        with subprocess.Popen(["zstd", "-dcq", "--", file], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
            assert child.stdout is not None
            try:
                count = unpack(child.stdout, folder)
            finally:
                child.kill()
        if not count:
            raise Refused("it has no wheels")
    except Refused as error:
        reason = f"no wheels were taken from {file}: {error}"
    except (tarfile.TarError, EOFError, OSError, ValueError, MemoryError, OverflowError) as error:
        reason = f"{file} can't be read as a file of `ckp dist export`: {error or 'it asks for too much memory'}"
    else:
        return 0
    shutil.rmtree(folder)
    print(f"setup: error: {reason}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
