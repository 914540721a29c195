"""HTTPS to a registry: bounded tries with pauses, credentials, redirects, and sizes that cannot run away."""

from __future__ import annotations

import base64
import json
import re
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from ckp.clients.oci.store import MANIFEST_LIMIT
from ckp.kits.errors import CkpError, InvalidInput, VerificationFailed
from ckp.kits.retry import backoff
from ckp.kits.stopping import pause

TRIES = 6
"""How often a request is made before its error is final; the pauses between them add up to about 15 s."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds."""
RETRIED = frozenset({408, 429, 500, 502, 503, 504})
REDIRECTS = 5
TIMEOUT = httpx.Timeout(120, connect=10)
"""Seconds without a byte, not of the whole transfer."""

Content = bytes | Callable[[], Iterable[bytes]] | None


@dataclass(frozen=True)
class Answer:
    """A registry's answer, read whole."""

    status: int
    headers: httpx.Headers
    body: bytes


class Tries:
    """The tries of one piece of work: after each failure a pause, after the last an error with the reason."""

    def __init__(self, what: str, address: str, sleep: Callable[[float], None], limit: int = TRIES) -> None:
        self.what, self.address, self._sleep, self._limit = what, address, sleep, limit
        self._failures = 0

    def progress(self) -> None:
        """A step succeeded: failures are counted from zero again."""
        self._failures = 0

    def failed(self, reason: str, wait: float = 0.0) -> None:
        """Pause before the next try, at least `wait` seconds.

        Raises:
            CkpError: that was the last one.
        """
        self._failures += 1
        if self._failures >= self._limit:
            raise CkpError(
                f"{self.what}: the registry {self.address} failed {self._limit} times",
                details=reason,
                resolution="check that it runs and can be reached, and run the same command again: it continues from here",
            )
        self._sleep(min(max(backoff(self._failures - 1, first=FIRST_PAUSE, limit=LONGEST_PAUSE), wait), LONGEST_PAUSE))


class Credentials:
    """User and password for one registry, from a file in the format of docker's and podman's `config.json`.

    Only the table `auths` is read: `{"auths": {"host:port": {"auth": base64("user:password")}}}`.
    """

    def __init__(self, file: Path, address: str) -> None:
        try:
            if file.stat().st_mode & 0o077:
                raise InvalidInput(f"{file} holds passwords and is readable by others", resolution=f"chmod 600 {file}")
            entries = json.loads(file.read_bytes())["auths"]
            entry = entries.get(address) or entries.get(f"https://{address}")
            self.basic = ""
            if entry:
                encoded = entry.get("auth") or base64.b64encode(f"{entry['username']}:{entry['password']}".encode()).decode()
                if b":" not in base64.b64decode(encoded, validate=True):
                    raise ValueError
                self.basic = f"Basic {encoded}"
        except OSError as error:
            raise InvalidInput(f"the credentials in {file} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError):
            # What is in the file is not shown, nor the parser's error, which quotes it.
            raise InvalidInput(f"{file} is not in the format of docker's config.json", resolution="`docker login` or `podman login` writes one") from None


class RegistryHttp:
    """Requests to one registry, over TLS always.

    Args:
        address: `host:port`.
        ca: the CA that its certificate chains to; None for the system's own.
        credentials: a file as `Credentials` reads it.
        transport: takes the place of the network, for the simulator.
        sleep: how to pause between two tries.
    """

    def __init__(
        self,
        address: str,
        ca: Path | None,
        credentials: Path | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = pause,
    ) -> None:
        if not re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?", address):
            raise InvalidInput(f"{address!r} is not the address of a registry", resolution="write host:port, without https:// and without a repository")
        self.address = address
        self._base = httpx.URL(f"https://{address}")
        self._basic = Credentials(credentials, address).basic if credentials else ""
        self._authorization: dict[tuple[str, str], str] = {}
        self._sleep = sleep
        try:
            context = ssl.create_default_context(cafile=str(ca) if ca else None) if transport is None else True
        except (OSError, ssl.SSLError) as error:
            raise InvalidInput(f"{ca} is not a file of CA certificates (PEM)", details=str(error)) from error
        self._http = httpx.Client(base_url=self._base, verify=context, timeout=TIMEOUT, trust_env=False, transport=transport)

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def alive(self) -> bool:
        """Whether it answers `GET /v2/`, tried once."""
        try:
            return self._http.get("/v2/", timeout=3).status_code in (200, 401)
        except httpx.HTTPError:
            return False

    def tries(self, what: str) -> Tries:
        """To count the failures of one piece of work."""
        return Tries(what, self.address, self._sleep)

    def send(
        self,
        method: str,
        url: str | httpx.URL,
        *,
        what: str,
        allow: tuple[int, ...] = (200,),
        headers: Mapping[str, str] | None = None,
        content: Content = None,
        limit: int = MANIFEST_LIMIT,
    ) -> Answer:
        """Make a request and read its answer.

        Args:
            what: names the work in an error.
            allow: the status codes that the caller deals with.
            content: bytes, or a function that makes the body for each attempt.
            limit: bytes that the answer may have.

        Raises:
            CkpError: another status code, or no answer after all tries.
            VerificationFailed: the answer is longer than that.
        """
        tries = self.tries(what)
        while True:
            try:
                with self.open(method, url, headers=headers, content=content) as answer:
                    if answer.status_code not in RETRIED:
                        return self._take(answer, what, allow, limit)
                    reason, wait = self.told(answer), retry_after(answer)
            except httpx.TransportError as error:
                reason, wait = self.broken(error, what), 0.0
            tries.failed(reason, wait)

    def _take(self, answer: httpx.Response, what: str, allow: tuple[int, ...], limit: int) -> Answer:
        if answer.status_code not in allow:
            raise self.refused(answer, what)
        body = read(answer, limit)
        if body is None:
            raise VerificationFailed(f"{what}: the registry {self.address} sends more than {limit} bytes, which is the limit")
        return Answer(answer.status_code, answer.headers, body)

    @contextmanager
    def open(self, method: str, url: str | httpx.URL, *, headers: Mapping[str, str] | None = None, content: Content = None) -> Iterator[httpx.Response]:
        """One try of a request: its answer, not yet read. Logs in when the registry asks for it; follows redirects of reads, to https only."""
        where = self._base.join(url) if isinstance(url, str) else url
        scope = _scope(method, where)
        answer = self._once(method, where, headers, content, scope)
        # Only the registry itself may ask for credentials: a server that it redirects to could name a token server of its own.
        if answer.status_code == 401 and answer.url.netloc == self._base.netloc:
            try:
                again = self._log_in(answer, scope)
            except BaseException:
                answer.close()
                raise
            if again:
                answer.close()
                answer = self._once(method, where, headers, content, scope)
        try:
            yield answer
        finally:
            answer.close()

    def _once(self, method: str, url: httpx.URL, headers: Mapping[str, str] | None, content: Content, scope: tuple[str, str]) -> httpx.Response:
        self._require_https(url)
        # Digests are of the bytes as they are stored: nothing may be compressed on the way.
        sent = {"Accept-Encoding": "identity", **(headers or {})}
        if url.netloc == self._base.netloc and (known := self._authorization.get(scope)):
            sent["Authorization"] = known
        request = self._http.build_request(method, url, headers=sent, content=content() if callable(content) else content)
        answer = self._http.send(request, stream=True)
        for _ in range(REDIRECTS):
            # A registry may keep its blobs in an object store and send its clients there; httpx leaves our Authorization behind.
            if method not in ("GET", "HEAD") or answer.next_request is None:
                break
            answer.close()
            self._require_https(answer.next_request.url)
            answer = self._http.send(answer.next_request, stream=True)
        return answer

    def _require_https(self, url: httpx.URL) -> None:
        if url.scheme != "https":
            raise CkpError(
                f"the registry {self.address} redirects to {url.scheme}://{url.host}, which is not TLS",
                resolution="configure it to redirect to https addresses only",
            )

    # -- credentials: basic, and the token flow of docker's and the distribution project's "Token Authentication Specification"

    def _log_in(self, answer: httpx.Response, scope: tuple[str, str]) -> bool:
        """Get what the challenge asks for; whether another try makes sense: another thread may have logged in while this one was refused."""
        challenge = answer.headers.get("WWW-Authenticate", "")
        kind, _, rest = challenge.partition(" ")
        if kind.lower() == "basic" and self._basic:
            self._authorization[scope] = self._basic
        elif kind.lower() == "bearer":
            parameters = dict(re.findall(r'(\w+)="([^"]*)"', rest))
            self._authorization[scope] = f"Bearer {self._token(parameters)}"
        return bool(self._authorization.get(scope) != answer.request.headers.get("Authorization"))

    def _token(self, challenge: Mapping[str, str]) -> str:
        realm = httpx.URL(challenge.get("realm", ""))
        self._require_https(realm)
        url = realm.copy_merge_params({name: challenge[name] for name in ("service", "scope") if name in challenge})
        request = self._http.build_request("GET", url, headers={"Authorization": self._basic} if self._basic else {})
        answer = self._http.send(request, stream=True)
        try:
            body = read(answer, 1 << 18) or b""
            data = json.loads(body) if answer.status_code == 200 else {}
            token = data.get("token") or data.get("access_token")
        except (ValueError, AttributeError):
            token = None
        finally:
            answer.close()
        if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
            raise CkpError(f"the registry {self.address} gets its tokens from {realm.host}, which issued none ({answer.status_code})", resolution=self._advice)
        return token

    @property
    def _advice(self) -> str:
        return "look at the user's password and rights" if self._basic else f"name a file with the credentials for {self.address}"

    # -- what went wrong, in words

    def told(self, answer: httpx.Response) -> str:
        """What an answer says of an error."""
        try:
            text = (read(answer, 1 << 16) or b"").decode(errors="replace")
        except httpx.TransportError:
            text = ""
        try:
            found = "; ".join(f"{item['code']}: {item.get('message', '')}" for item in json.loads(text)["errors"])
        except (ValueError, KeyError, TypeError, AttributeError):
            found = text[:300]
        return f"it answered {answer.status_code} {answer.reason_phrase} {found}".strip()

    def refused(self, answer: httpx.Response, what: str) -> CkpError:
        """The error for an answer that no further try would better."""
        resolution = self._advice if answer.status_code in (401, 403) else ""
        return CkpError(f"{what}: the registry {self.address} refuses", details=self.told(answer), resolution=resolution)

    def broken(self, error: httpx.TransportError, what: str) -> str:
        """Why a connection failed. A certificate that is not good stays so: that is raised at once."""
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise CkpError(
                    f"{what}: the certificate of {self.address} is not trusted", details=cause.verify_message, resolution="name the CA that signed it"
                ) from error
            cause = cause.__cause__ or cause.__context__
        return f"{type(error).__name__}: {error}"


def read(answer: httpx.Response, limit: int) -> bytes | None:
    """An answer's body; None if it is longer than `limit` bytes."""
    data = bytearray()
    for chunk in answer.iter_raw():
        data += chunk
        if len(data) > limit:
            return None
    return bytes(data)


def retry_after(answer: httpx.Response) -> float:
    """Seconds that the server asks us to wait (RFC 9110, 10.2.3); a date is not looked at."""
    text = answer.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0.0


def _scope(method: str, url: httpx.URL) -> tuple[str, str]:
    """What a token is good for: a repository, to read or to write."""
    match = re.match(r"/v2/(.+)/(?:blobs|manifests|tags|referrers)/", url.path)
    return (match.group(1) if match else "", "pull" if method in ("GET", "HEAD") else "push")
