"""A bucket of an object store with Amazon's S3 API: what backups need of it, over HTTPS and the one rule about proxies.

Requests are signed as Signature Version 4 describes it, with the SHA-256 of each body, so that a store takes no body that was changed on its way. Buckets are
named in the path of the URL, which all stores understand. A large object goes up in parts: it has its name only once the store has all of them.

It is here, and not a library, since it runs on hosts as well: with the standard library of Python 3.9, in the one file that the host tool is.
"""

from __future__ import annotations

import configparser
import hashlib
import hmac
import http.client
import os
import ssl
import time
import urllib.parse
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import BinaryIO, Callable, Iterator, Mapping, Optional

from ckp.hostkit import proxies
from ckp.hostkit.errors import SET_CLOCK, AgentError, InvalidInput

REGION = "us-east-1"
"""Where a store has no regions, this is what it is asked for."""
PART = 8 << 20
"""Bytes of a part, and what is held in memory: the smallest that S3 takes is 5 MiB. An object of more than MOST_PARTS of them has larger ones."""
MOST_PARTS = 9000
"""S3 takes 10,000."""
PIECE = 1 << 18
SECONDS = 120.0
"""Of silence, after which a connection is given up."""
SLOWEST = 50_000
"""Bytes a second: what is slower than that is given up."""
ATTEMPTS = 5
FIRST_DELAY, LONGEST_DELAY = 0.5, 8.0
ANSWER_BYTES = 4 << 20
"""The longest answer that is read, but for an object's content."""
ABANDONED = 24 * 3600.0
"""Age in seconds from which on an upload that was not completed is taken for that of a run that was killed."""
_TRANSIENT = (408, 429, 500, 502, 503, 504)
_EMPTY = hashlib.sha256(b"").hexdigest()


class StoreError(AgentError):
    """The store refuses a request, or can't be reached.

    Args:
        code: S3's own word for it, such as `NoSuchBucket`; empty if it gave none.
    """

    default_reason = "ObjectStore"

    def __init__(self, brief: str, *, details: str = "", resolution: str = "", code: str = "") -> None:
        super().__init__(brief, details=details, resolution=resolution)
        self.code = code


@dataclass(frozen=True)
class Credentials:
    """An access key. Its secret half is in no text that this makes."""

    access: str
    secret: str = field(repr=False)
    token: str = field(default="", repr=False)


@dataclass(frozen=True)
class Bucket:
    """A bucket, and what names of its objects begin with.

    Args:
        endpoint: `https://HOST[:PORT]`, or with http.
        prefix: of all names, without a slash at its ends; empty for none.
        ca: PEM of the CAs that its certificate has to chain to; empty for those that the system trusts, and `more_cas`.
        more_cas: PEM of CAs that are trusted beside the system's.
    """

    endpoint: str
    name: str
    prefix: str = ""
    region: str = REGION
    ca: str = ""
    more_cas: str = ""

    def __str__(self) -> str:
        return f"{self.endpoint.rstrip('/')}/{self.name}{'/' if self.prefix else ''}{self.prefix}"

    def key(self, name: str) -> str:
        """The whole name of an object."""
        return f"{self.prefix}/{name}" if self.prefix else name


@dataclass(frozen=True)
class StoredObject:
    """An object of the bucket.

    Args:
        name: without the bucket's prefix.
        size: bytes.
    """

    name: str
    size: int


def read_credentials(text: str, where: str) -> Credentials:
    """An access key from a file in the format of ~/.aws/credentials: its section `default`, or its only one.

    Args:
        where: the file, for errors.

    Raises:
        InvalidInput: there is none. Nothing of the text is quoted.
    """
    parser = configparser.RawConfigParser()
    how = "write [default], aws_access_key_id = … and aws_secret_access_key = … into it, each on a line of its own"
    try:
        parser.read_string(text)
    except configparser.Error:
        raise InvalidInput(f"{where} is not in the format of ~/.aws/credentials", resolution=how) from None
    sections = parser.sections()
    section = "default" if "default" in sections else sections[0] if len(sections) == 1 else ""
    if not section:
        raise InvalidInput(f"{where} has {len(sections)} sections, and none is called default", resolution=how)
    values = {name: parser.get(section, name, fallback="").strip() for name in ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")}
    if not values["aws_access_key_id"] or not values["aws_secret_access_key"]:
        raise InvalidInput(f"{where} has no access key", resolution=how)
    if any(not value.isascii() or not value.isprintable() for value in values.values()):
        raise InvalidInput(f"{where} holds characters that no access key has", resolution=how)
    return Credentials(*values.values())


class Store:
    """One bucket. Not for several threads at once; `close` ends its connection.

    Args:
        environment: names the proxy (ckp.hostkit.proxies).
        now: the time, in seconds since the epoch: requests are signed with it.
        sleep: waits for so many seconds, between attempts.
    """

    def __init__(
        self,
        bucket: Bucket,
        credentials: Credentials,
        environment: Optional[Mapping[str, str]] = None,
        *,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        parts = urllib.parse.urlsplit(bucket.endpoint)
        self.bucket, self._credentials, self._now, self._sleep = bucket, credentials, now, sleep
        self._environment = os.environ if environment is None else environment
        self._host, tls = parts.hostname or "", parts.scheme == "https"
        self._port = parts.port or (443 if tls else 80)
        self._tls = _context(bucket) if tls else None
        self._named = parts.netloc.rpartition("@")[2]
        self._connection: Optional[http.client.HTTPConnection] = None

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # -- what is done with objects

    def objects(self, beginning: str = "") -> list[StoredObject]:
        """The objects whose names begin so, by name. Raises StoreError."""
        found: list[StoredObject] = []
        query = {"list-type": "2", "prefix": self.bucket.key(beginning)}
        for page in self._pages(query, "continuation-token", "NextContinuationToken", "listing"):
            for item in page.iter("Contents"):
                name = _text(item, "Key")
                if name.startswith(query["prefix"]):
                    found.append(StoredObject(name[len(self.bucket.key("")) :], int(_text(item, "Size") or 0)))
        return sorted(found, key=lambda each: each.name)

    def put(self, name: str, source: BinaryIO, size: int) -> str:
        """Store an object; it is there whole, or not at all. The SHA-256 of what was sent, in hex.

        Args:
            source: is read from where it stands, `size` bytes.

        Raises:
            StoreError: an object has that name already, or the store refuses, or can't be reached; no object has the name then.
            AgentError: the source ends before its size, or sending took longer than SLOWEST allows.
        """
        if self._head(name) is not None:
            raise StoreError(f"{self.bucket} has an object {name} already", resolution="take another name: backups are never written over", code="Exists")
        if size <= PART:
            body = _whole(source, size, name)
            self._ask("PUT", name, body=body, what=f"storing {name}")
            return hashlib.sha256(body).hexdigest()
        return self._put_in_parts(name, source, size)

    def _put_in_parts(self, name: str, source: BinaryIO, size: int) -> str:
        length = max(PART, -(-size // MOST_PARTS))
        upload = _text(_parsed(self._ask("POST", name, {"uploads": ""}, what=f"storing {name}")), "UploadId")
        if not upload:
            raise StoreError(f"{self.bucket} began no upload of {name}", resolution="see whether the store supports multipart uploads")
        deadline = time.monotonic() + SECONDS + size / SLOWEST
        digest, sent = hashlib.sha256(), 0
        marks: list[str] = []
        try:
            while sent < size:
                body = _whole(source, min(length, size - sent), name)
                digest.update(body)
                _require_time(deadline, f"storing {name} in {self.bucket}")
                query = {"partNumber": str(len(marks) + 1), "uploadId": upload}
                answer = self._response("PUT", name, query, body=body, what=f"storing {name}")
                marks.append(answer[0].get("etag", ""))
                sent += len(body)
            self._complete(name, upload, marks)
        except BaseException:
            self._abort(name, upload)
            raise
        return digest.hexdigest()

    def _complete(self, name: str, upload: str, marks: list[str]) -> None:
        root = ET.Element("CompleteMultipartUpload", xmlns="http://s3.amazonaws.com/doc/2006-03-01/")
        for number, mark in enumerate(marks, start=1):
            part = ET.SubElement(root, "Part")
            ET.SubElement(part, "PartNumber").text = str(number)
            ET.SubElement(part, "ETag").text = mark
        what = f"completing {name}"
        try:
            answer = _parsed(self._ask("POST", name, {"uploadId": upload}, body=ET.tostring(root), what=what))
        except StoreError as error:
            if error.code != "NoSuchUpload" or self._head(name) is None:
                raise
            return  # an attempt before, whose answer was lost, has completed it
        if answer.tag == "Error":  # S3 answers 200 before it has put the parts together
            raise self._refused(what, 200, answer, {})

    def get(self, name: str, write: Callable[[bytes], object]) -> str:
        """Read an object, in pieces; its SHA-256, in hex. A connection that breaks is gone on with where it broke.

        Raises:
            StoreError: there is none, or the store refuses, or can't be reached.
            AgentError: it was changed meanwhile, or reading it took longer than SLOWEST allows.
        """
        seen = self._head(name)
        if seen is None:
            raise StoreError(f"{self.bucket} has no object {name}", code="NoSuchKey")
        size, mark = seen
        deadline = time.monotonic() + SECONDS + size / SLOWEST
        digest, have, failed = hashlib.sha256(), 0, 0
        pieces: Optional[Iterator[bytes]] = None
        while have < size:
            _require_time(deadline, f"reading {name} from {self.bucket}")
            try:
                pieces = pieces or self._pieces(name, mark, have, size)
                piece = next(pieces)
            except (OSError, http.client.HTTPException) as error:
                self.close()
                pieces, failed = None, failed + 1
                if failed >= ATTEMPTS:
                    raise self._unreachable(f"reading {name}", error) from None
                self._sleep(_delay(failed))
                continue
            failed = 0
            digest.update(piece)
            have += len(piece)
            write(piece)
        self.close()
        return digest.hexdigest()

    def delete(self, name: str) -> None:
        """Delete an object; none there is fine. Raises StoreError."""
        self._ask("DELETE", name, what=f"deleting {name}")

    def abort_abandoned(self, beginning: str) -> int:
        """End uploads of such names that runs have left which were killed, a day ago or more; how many. Raises StoreError."""
        found, query = [], {"uploads": "", "prefix": self.bucket.key(beginning)}
        page = _parsed(self._ask("GET", "", query, what="listing uploads"))
        for item in page.iter("Upload"):
            name, began = _text(item, "Key"), _seconds(_text(item, "Initiated"))
            if name.startswith(query["prefix"]) and began is not None and self._now() - began > ABANDONED:
                found.append((name[len(self.bucket.key("")) :], _text(item, "UploadId")))
        for name, upload in found:
            self._ask("DELETE", name, {"uploadId": upload}, what=f"ending an upload of {name}")
        return len(found)

    def _abort(self, name: str, upload: str) -> None:
        try:
            self._ask("DELETE", name, {"uploadId": upload}, what=f"ending the upload of {name}")
        except AgentError:
            pass  # what ended the upload says more; `abort_abandoned` finds it later

    # -- requests

    def _pages(self, query: dict[str, str], more: str, following: str, what: str) -> Iterator[ET.Element]:
        token = ""
        for _ in range(10_000):
            page = _parsed(self._ask("GET", "", {**query, **({more: token} if token else {})}, what=what))
            yield page
            token = _text(page, following)
            if not token or _text(page, "IsTruncated") != "true":
                return
        raise StoreError(f"{self.bucket} has no end", resolution="name a `prefix` with fewer objects")

    def _head(self, name: str) -> Optional[tuple[int, str]]:
        """Size and ETag of an object; None if there is none."""
        try:
            headers, _ = self._response("HEAD", name, what=f"looking for {name}")
        except StoreError as error:
            if error.code == "404":
                return None
            raise
        return int(headers.get("content-length", 0)), headers.get("etag", "")

    def _ask(self, method: str, name: str, query: Optional[Mapping[str, str]] = None, *, body: bytes = b"", what: str) -> bytes:
        return self._response(method, name, query, body=body, what=what)[1]

    def _response(self, method: str, name: str, query: Optional[Mapping[str, str]] = None, *, body: bytes = b"", what: str) -> tuple[Mapping[str, str], bytes]:
        """The headers (their names in lower case) and the content of an answer, after as many attempts as it needs."""
        failed = 0
        while True:
            failed += 1
            try:
                answer = self._sent(method, name, query or {}, {}, body)
                content = answer.read(ANSWER_BYTES)
            except (OSError, http.client.HTTPException) as error:
                self.close()
                if failed >= ATTEMPTS or isinstance(error, ssl.SSLCertVerificationError):
                    raise self._unreachable(what, error) from None
                self._sleep(_delay(failed))
                continue
            if not answer.isclosed():
                self.close()
            headers = {key.lower(): value for key, value in answer.getheaders()}
            if answer.status // 100 == 2:
                return headers, content
            if answer.status not in _TRANSIENT or failed >= ATTEMPTS:
                raise self._refused(what, answer.status, _error(content), headers)
            self._sleep(_delay(failed))

    def _pieces(self, name: str, mark: str, begin: int, end: int) -> Iterator[bytes]:
        """What an object has from one byte up to another. OSError or HTTPException if less comes.

        Args:
            mark: its ETag: an object that was replaced meanwhile is not gone on with.
        """
        answer = self._sent("GET", name, {}, {"range": f"bytes={begin}-", **({"if-match": mark} if mark else {})}, b"")
        if answer.status not in (200, 206):
            content = answer.read(ANSWER_BYTES)
            self.close()
            if answer.status in _TRANSIENT:
                raise OSError(f"it answered {answer.status}")
            raise self._refused(f"reading {name}", answer.status, _error(content), {key.lower(): value for key, value in answer.getheaders()})
        if answer.status == 200 and begin:
            self.close()
            raise StoreError(f"{self.bucket} broke off in the middle of {name}, and does not give the rest alone", resolution="run the same command again")
        while begin < end:
            piece = answer.read(min(PIECE, end - begin))
            if not piece:
                raise OSError("it ended before all of it came")
            begin += len(piece)
            yield piece

    def _sent(self, method: str, name: str, query: Mapping[str, str], headers: Mapping[str, str], body: bytes) -> http.client.HTTPResponse:
        path = "/" + _quoted(f"{self.bucket.name}/{self.bucket.key(name)}" if name else self.bucket.name, "/")
        text = "&".join(f"{_quoted(key)}={_quoted(value)}" for key, value in sorted(query.items()))
        stamp = datetime.fromtimestamp(self._now(), timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        digest = hashlib.sha256(body).hexdigest() if body else _EMPTY
        own = {"host": self._named, "x-amz-content-sha256": digest, "x-amz-date": stamp}
        if self._credentials.token:
            own["x-amz-security-token"] = self._credentials.token
        own["authorization"] = authorization(method, path, text, own, self._credentials, self.bucket.region)
        sent = {**own, **headers, **({"content-length": str(len(body))} if body or method in ("PUT", "POST") else {})}
        connection = self._connected()
        connection.request(method, f"{path}?{text}" if text else path, body or None, sent)
        return connection.getresponse()

    def _connected(self) -> http.client.HTTPConnection:
        if self._connection is None or self._connection.sock is None:
            made = http.client.HTTPConnection(self._host, self._port, timeout=SECONDS)
            made.auto_open = 0  # by itself, it would connect without TLS and past the proxy
            link = proxies.connect(self._host, self._port, SECONDS, self._environment)
            try:
                made.sock = self._tls.wrap_socket(link, server_hostname=self._host) if self._tls else link
            except BaseException:
                link.close()
                raise
            self._connection = made
        return self._connection

    # -- errors

    def _unreachable(self, what: str, error: Exception) -> StoreError:
        if isinstance(error, ssl.SSLCertVerificationError):
            said, how = f"its certificate is not trusted: {error.verify_message}", "name the CA that has issued it (`caFile`), and see that the clock is right"
        else:
            said, how = str(error) or type(error).__name__, "see that the store runs, and that it is reached from here (`network.proxy`)"
        return StoreError(f"{what}: {self.bucket} can't be reached", details=said, resolution=how)

    def _refused(self, what: str, status: int, answer: Optional[ET.Element], headers: Mapping[str, str]) -> StoreError:
        code = _text(answer, "Code") if answer is not None else ""
        said = _text(answer, "Message")[:300] if answer is not None else ""
        region = (_text(answer, "Region") if answer is not None else "") or headers.get("x-amz-bucket-region", "")
        how = {
            "NoSuchBucket": "make the bucket, or correct `bucket`",
            "InvalidAccessKeyId": "correct the access key in `credentialsFile`",
            "XAdminUserNotFound": "correct the access key in `credentialsFile`",  # as versitygw says it
            "SignatureDoesNotMatch": "correct the secret key in `credentialsFile`",
            "AccessDenied": "let this access key list the bucket, and put, get and delete objects in it",
            "RequestTimeTooSkewed": SET_CLOCK,
        }.get(code, "correct what it names, and run the same command again")
        if region and region != self.bucket.region and status in (301, 307, 400):
            how = f"write `region: {region}`"
        elif not code and status == 403:
            how = "see that the access key is right, and that it may list, put, get and delete objects in this bucket"
        brief = f"{what}: {self.bucket} answered {status}{' ' + code if code else ''}"
        return StoreError(brief, details=said, resolution=how, code=code or str(status))


def authorization(method: str, path: str, query: str, headers: Mapping[str, str], credentials: Credentials, region: str) -> str:
    """The header that signs a request: Signature Version 4 (Amazon S3 API Reference, "Authenticating Requests: Using the Authorization Header").

    Args:
        path: quoted.
        query: quoted, and in the order of its keys.
        headers: those that are signed, their names in lower case, with x-amz-date and x-amz-content-sha256.
    """
    stamp, digest = headers["x-amz-date"], headers["x-amz-content-sha256"]
    names = ";".join(sorted(headers))
    lines = "".join(f"{name}:{headers[name].strip()}\n" for name in sorted(headers))
    request = f"{method}\n{path}\n{query}\n{lines}\n{names}\n{digest}"
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = f"AWS4{credentials.secret}".encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    return f"AWS4-HMAC-SHA256 Credential={credentials.access}/{scope},SignedHeaders={names},Signature={signature}"


def _context(bucket: Bucket) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cadata=bucket.ca or None)
        if bucket.more_cas and not bucket.ca:
            context.load_verify_locations(cadata=bucket.more_cas)
        return context
    except (ssl.SSLError, ValueError):
        raise InvalidInput(f"the CA for {bucket.endpoint} is no certificate", resolution="name a PEM file with the CA (`caFile`)") from None


def _quoted(text: str, safe: str = "") -> str:
    return urllib.parse.quote(text, safe=f"{safe}-._~")


def _whole(source: BinaryIO, size: int, name: str) -> bytes:
    pieces, left = [], size
    while left:
        piece = source.read(left)
        if not piece:
            raise AgentError(f"what is stored as {name} ended before all of it was read")
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def _parsed(data: bytes) -> ET.Element:
    """An answer's element, its names without their namespace. StoreError if it is none."""
    if b"<!" in data:  # no answer of S3 has a document type, and so there are no entities
        raise StoreError("the store's answer is not S3's", details=data[:200].decode(errors="replace"), resolution="see that `endpoint` is that of an S3 API")
    try:
        root = ET.fromstring(data)  # noqa: S314 - what attacks need is refused above
    except ET.ParseError as error:
        raise StoreError(f"the store's answer is not XML: {error}", resolution="see that `endpoint` is that of an S3 API") from None
    for item in root.iter():
        item.tag = item.tag.rpartition("}")[2]
    return root


def _error(data: bytes) -> Optional[ET.Element]:
    try:
        found = _parsed(data)
    except StoreError:
        return None
    return found if found.tag == "Error" else None


def _text(element: ET.Element, name: str) -> str:
    return (element.findtext(name) or "").strip()


def _seconds(text: str) -> Optional[float]:
    try:
        return datetime.strptime(text[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc).timestamp()
    except ValueError:
        return None


def _delay(failed: int) -> float:
    return min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** (failed - 1))


def _require_time(deadline: float, what: str) -> None:
    if time.monotonic() > deadline:
        raise AgentError(f"{what} took too long: less than {SLOWEST} bytes a second", resolution="see what slows the network or the store down")
