"""What the go command says when a source can't be had or is not what its lock says, told as what it means here."""

from __future__ import annotations

import re

from ckp.catalog.models import Source
from ckp.kits.errors import CkpError, InvalidInput, VerificationFailed
from ckp.kits.processes import ProcessFailed

_MISMATCH = re.compile(r"verifying (?P<module>\S+?)(?:/go\.mod)?: checksum mismatch")
_REFUSED = re.compile(r"(?P<module>[\w./!~-]+@[\w.+-]+)?:? ?(?:reading|Get) \"?(?P<place>https?://\S+?)\"?: (?P<answer>(?:40[0-9]|410|5[0-9]{2})[^\n]*)")
_UNREACHABLE = re.compile(r"dial tcp|no such host|connection refused|network is unreachable|i/o timeout|TLS handshake|module lookup disabled")
_LOCK = re.compile(r"(missing go\.sum entry[^\n]*|updates to go\.mod needed[^\n]*|no required module provides package[^\n]*)")
_TOOLCHAIN = re.compile(r"requires go >= (?P<wanted>[\w.]+)")


def explain(error: ProcessFailed, source: Source) -> CkpError:
    """The failure of a go command over `source`, as an error of the kind that it is."""
    text = f"{error.brief}\n{error.details}"
    name = f"{source.component} {source.version}"
    if found := _MISMATCH.search(text):
        return VerificationFailed(
            f"the source of {name} is not what its lock says: {found['module']} has another hash than go.sum",
            details=error.details,
            resolution="it was changed on the way: use another GOPROXY; change the lock only if you know that upstream published it again",
        )
    if found := _REFUSED.search(text):
        which = found["module"] or "a module"
        return CkpError(
            f"{name} can't be had: {which} is refused ({found['answer'].strip()}) by {found['place'].split('/')[2]}",
            details=error.details,
            resolution="use a GOPROXY that serves it, or the profile `lab`, where a named stand-in may take its place",
        )
    if found := _LOCK.search(text):
        return InvalidInput(
            f"the lock of {name} in {source.folder} is not complete: {found[1].strip()}",
            details=error.details,
            resolution="`ckp release check` shows what is out of step",
        )
    if found := _TOOLCHAIN.search(text):
        return InvalidInput(
            f"the lock of {name} names Go {source.go}, and its go.mod requires {found['wanted']}",
            details=error.details,
            resolution=f"correct `go` in {source.folder}/source.toml",
        )
    if _UNREACHABLE.search(text):
        return CkpError(
            f"the sources of {name} can't be fetched: no module proxy answers",
            details=error.details,
            resolution="check GOPROXY and the network; a site without network imports a release (ckp dist import)",
        )
    return error
