"""Kubernetes' API as dictionaries: lightkube carries the connection, this module gives it one small, typed face.

Objects are plain dictionaries as the API server sent them. Nothing here caches; ckp.runtime does.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

import httpx2
import yaml
from lightkube import AsyncClient, KubeConfig
from lightkube.config.client_adapter import verify_cluster
from lightkube.config.kubeconfig import SingleConfig
from lightkube.config.models import User
from lightkube.core.exceptions import ApiError
from lightkube.generic_resource import create_global_resource, create_namespaced_resource
from lightkube.resources.certificates_v1 import CertificateSigningRequestApproval
from lightkube.types import CascadeType, PatchType

from ckp.api.kinds import CSR, Kind, kind_of
from ckp.kits.errors import CkpError

Obj = dict[str, Any]
Objs = list[Obj]
PAGE = 500
EventType = Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]


CHANGE_TRIES = 8
"""Attempts to change an object on top of what was read, while others change it too."""


class KubeError(CkpError):
    """The API server refused a request, or could not be reached (code 0).

    Attributes:
        code: the HTTP status, 0 if there was no answer.
        reason: metav1.Status.reason, such as `NotFound`, `Conflict`, `AlreadyExists`.
    """

    def __init__(self, brief: str, *, code: int, reason: str = "") -> None:
        super().__init__(brief)
        self.code = code
        self.reason = reason


@cache
def _resource(kind: Kind) -> Any:
    create = create_namespaced_resource if kind.namespaced else create_global_resource
    return create(kind.group, kind.version, kind.kind, kind.plural)


def _plain(obj: Any) -> Obj:
    return cast(Obj, dict(obj))


class Kube:
    """A connection to one cluster.

    Args:
        config: where and as whom; None takes the pod's service account or KUBECONFIG.
        manager: the field manager of what we apply (server-side apply).
        timeout: seconds for one request (watches excepted).
        keep_alive: seconds for which a connection without a request is kept for the next one; with a kubeconfig.
    """

    def __init__(self, config: SingleConfig | None = None, *, manager: str = "ckp", timeout: float = 15.0, keep_alive: float = 5.0) -> None:
        limits = httpx2.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=keep_alive)
        transport = httpx2.AsyncHTTPTransport(verify=_trust(config), limits=limits) if config else None
        self._client = AsyncClient(config=config, field_manager=manager, timeout=httpx2.Timeout(timeout), trust_env=config is None, transport=transport)
        self._manager = manager

    @classmethod
    def from_kubeconfig(cls, source: Path | str | Mapping[str, Any], *, manager: str = "ckp", timeout: float = 15.0, keep_alive: float = 5.0) -> Kube:
        """From a kubeconfig's path, its text, or the parsed mapping.

        Raises:
            CkpError: there is no kubeconfig in it.
        """
        try:
            if isinstance(source, Path):
                config = KubeConfig.from_file(source)
            else:
                config = KubeConfig.from_dict(dict(yaml.safe_load(source) if isinstance(source, str) else source))
            single = config.get()
            if single is None:
                raise CkpError("the kubeconfig has no current context", resolution="set current-context in it")
            return cls(single, manager=manager, timeout=timeout, keep_alive=keep_alive)
        except (KeyError, TypeError, ValueError, AttributeError, ssl.SSLError, yaml.YAMLError) as error:
            # Without its text: it holds credentials.
            raise CkpError(f"the kubeconfig cannot be read ({type(error).__name__})") from None

    async def get(self, kind: Kind, name: str, namespace: str | None = None) -> Obj | None:
        """The object, or None if there is none."""
        try:
            return _plain(await self._client.get(_resource(kind), name, **_in(kind, namespace)))
        except ApiError as error:
            if error.status.code == 404:
                return None
            raise _told(error, "get", kind, name, namespace) from error
        except (httpx2.HTTPError, ssl.SSLError) as error:
            raise _unreached(error, "get", kind, name, namespace) from error

    async def list(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        labels: Mapping[str, str | None] | None = None,
        fields: Mapping[str, str] | None = None,
        page: int = PAGE,
    ) -> Objs:
        """All objects of a kind, in one namespace or (None) everywhere; a label whose value is None must just exist.

        Args:
            fields: values of fields by their paths, as far as the API server selects this kind by them.
            page: how many come in one answer. While one is parsed, nothing else in this process runs.
        """
        return (await self.list_with_version(kind, namespace, labels=labels, fields=fields, page=page))[0]

    async def list_with_version(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        labels: Mapping[str, str | None] | None = None,
        fields: Mapping[str, str] | None = None,
        page: int = PAGE,
    ) -> tuple[Objs, str]:
        """As `list`, with the resourceVersion that a watch goes on from."""
        try:
            answer = self._client.list(
                _resource(kind),
                chunk_size=page,
                labels=cast(Any, dict(labels)) if labels else None,
                fields=cast(Any, dict(fields)) if fields else None,
                **_in(kind, namespace, everywhere=True),
            )
            items = [_plain(item) async for item in answer]
            return items, answer.resourceVersion
        except ApiError as error:
            raise _told(error, "list", kind, "", namespace) from error
        except (httpx2.HTTPError, ssl.SSLError) as error:
            raise _unreached(error, "list", kind, "", namespace) from error

    async def watch(
        self, kind: Kind, namespace: str | None, version: str, *, labels: Mapping[str, str | None] | None = None, seconds: int = 240
    ) -> AsyncIterator[tuple[EventType, Obj]]:
        """Changes since `version`; ends by itself after about `seconds` (the caller lists or watches again)."""
        try:
            stream = self._client.watch(
                _resource(kind),
                resource_version=version,
                server_timeout=seconds,
                labels=cast(Any, dict(labels)) if labels else None,
                **_in(kind, namespace, everywhere=True),
            )
            async for event, obj in stream:
                yield cast(EventType, event), _plain(obj)
        except ApiError as error:
            raise _told(error, "watch", kind, "", namespace) from error
        except (httpx2.HTTPError, ssl.SSLError) as error:
            raise _unreached(error, "watch", kind, "", namespace) from error

    async def create(self, obj: Obj) -> Obj:
        """Create; KubeError with reason AlreadyExists if it is there."""
        kind = kind_of(obj)
        try:
            return _plain(await self._client.create(_resource(kind)(obj), **_in(kind, obj["metadata"].get("namespace"))))
        except ApiError as error:
            raise _told(error, "create", kind, obj["metadata"].get("name", ""), obj["metadata"].get("namespace")) from error
        except (httpx2.HTTPError, ssl.SSLError) as error:
            raise _unreached(error, "create", kind, obj["metadata"].get("name", ""), obj["metadata"].get("namespace")) from error

    async def apply(self, obj: Obj, *, subresource: Literal["", "status"] = "") -> Obj:
        """Server-side apply: make the fields that `obj` names be so, and own them."""
        meta = obj["metadata"]
        params = {"patch_type": PatchType.APPLY, "force": True}
        return await self._patch(kind_of(obj), meta["name"], meta.get("namespace"), obj, subresource, params)

    async def merge(self, kind: Kind, name: str, namespace: str | None, patch: Mapping[str, Any], *, subresource: Literal["", "status"] = "") -> Obj:
        """JSON merge patch (RFC 7386): lists are replaced, None removes."""
        return await self._patch(kind, name, namespace, dict(patch), subresource, {"patch_type": PatchType.MERGE})

    async def change(
        self,
        kind: Kind,
        name: str,
        namespace: str,
        patch_of: Callable[[Obj], Obj | None],
        *,
        subresource: Literal["", "status"] = "",
        found: Obj | None = None,
    ) -> Obj | None:
        """Merge what `patch_of` makes of the object, on top of exactly what it was made of; patched again if somebody else changed it first.

        Args:
            patch_of: the patch for the object as it is, or None: it needs none. What it raises ends the change.
            found: the object, if it was read just now.

        Returns:
            The object as it is then; None if there is none.

        Raises:
            KubeError: it can't be changed, or others change it all the time (Conflict).
        """
        for attempt in range(CHANGE_TRIES):
            found = found or await self.get(kind, name, namespace)
            patch = patch_of(found) if found is not None else None
            if found is None or patch is None:
                return found
            meta = {**patch.get("metadata", {}), "resourceVersion": found["metadata"]["resourceVersion"]}
            try:
                return await self.merge(kind, name, namespace, {**patch, "metadata": meta}, subresource=subresource)
            except KubeError as error:
                if error.code == 404:
                    return None
                if error.reason != "Conflict" or attempt == CHANGE_TRIES - 1:
                    raise
            found = None
        raise AssertionError("the last attempt returns or raises")

    async def text(self, path: str) -> str:
        """What the API server answers at a path that is no resource's, such as `/metrics`.

        Raises:
            KubeError: it refuses, or can't be reached.
        """
        try:
            # lightkube has no call for such paths; its own HTTP client has the address and the credentials.
            answer = await self._client._client._client.get(path)
            answer.raise_for_status()
        except (httpx2.HTTPError, ssl.SSLError) as error:
            code = error.response.status_code if isinstance(error, httpx2.HTTPStatusError) else 0
            raise KubeError(f"get {path}: {error or type(error).__name__}", code=code) from error
        return answer.text

    async def approve(self, request: Obj, *, reason: str, message: str) -> None:
        """Approve a CertificateSigningRequest exactly as it was read; KubeError with reason Conflict if somebody else has decided meanwhile."""
        meta = request["metadata"]
        condition = {"type": "Approved", "status": "True", "reason": reason, "message": message}
        patch = {"metadata": {"resourceVersion": meta["resourceVersion"]}, "status": {"conditions": [condition]}}
        try:
            await self._client.patch(CertificateSigningRequestApproval, meta["name"], patch, patch_type=PatchType.MERGE)
        except ApiError as error:
            raise _told(error, "approve", CSR, meta["name"], None) from error
        except (httpx2.HTTPError, ssl.SSLError) as error:
            raise _unreached(error, "approve", CSR, meta["name"], None) from error

    async def _patch(self, kind: Kind, name: str, namespace: str | None, body: Obj, subresource: str, params: Mapping[str, Any]) -> Obj:
        resource = _resource(kind).Status if subresource == "status" else _resource(kind)
        try:
            return _plain(await self._client.patch(resource, name, body, **params, **_in(kind, namespace)))
        except ApiError as error:
            raise _told(error, "patch", kind, name, namespace) from error
        except (httpx2.HTTPError, ssl.SSLError) as error:
            raise _unreached(error, "patch", kind, name, namespace) from error

    async def replace(self, obj: Obj) -> Obj:
        """PUT with the object's resourceVersion: KubeError with reason Conflict if somebody was faster."""
        kind = kind_of(obj)
        meta = obj["metadata"]
        try:
            return _plain(await self._client.replace(_resource(kind)(obj), **_in(kind, meta.get("namespace"))))
        except ApiError as error:
            raise _told(error, "replace", kind, meta["name"], meta.get("namespace")) from error
        except (httpx2.HTTPError, ssl.SSLError) as error:
            raise _unreached(error, "replace", kind, meta["name"], meta.get("namespace")) from error

    async def delete(self, kind: Kind, name: str, namespace: str | None = None, *, foreground: bool = False) -> bool:
        """Ask for deletion; False if there was nothing to delete."""
        cascade = CascadeType.FOREGROUND if foreground else CascadeType.BACKGROUND
        try:
            await self._client.delete(_resource(kind), name, cascade=cascade, **_in(kind, namespace))
            return True
        except ApiError as error:
            if error.status.code == 404:
                return False
            raise _told(error, "delete", kind, name, namespace) from error
        except (httpx2.HTTPError, ssl.SSLError) as error:
            raise _unreached(error, "delete", kind, name, namespace) from error

    async def close(self) -> None:
        """Close its connections."""
        await self._client.close()


def _trust(config: SingleConfig) -> ssl.SSLContext:
    """What the kubeconfig says. CKP 0.2.0's held an intermediate CA: one that is not renewed yet is taken as it is, as Go does."""
    context = verify_cluster(config.cluster, config.user or User(), config.abs_file, trust_env=False)
    if any(ca["subject"] != ca["issuer"] for ca in context.get_ca_certs()):
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _in(kind: Kind, namespace: str | None, *, everywhere: bool = False) -> dict[str, Any]:
    if not kind.namespaced:
        return {}
    if namespace:
        return {"namespace": namespace}
    if everywhere:
        return {"namespace": "*"}
    raise CkpError(f"{kind.kind} lives in a namespace, and none was named")


def _where(kind: Kind, name: str, namespace: str | None) -> str:
    return f"{kind.kind} {namespace + '/' if namespace else ''}{name}".strip()


def _told(error: ApiError, verb: str, kind: Kind, name: str, namespace: str | None) -> KubeError:
    status = error.status
    return KubeError(f"{verb} {_where(kind, name, namespace)}: {status.message}", code=status.code or 500, reason=status.reason or "")


def _unreached(error: Exception, verb: str, kind: Kind, name: str, namespace: str | None) -> KubeError:
    """Also for answers that are not metav1.Status, as a proxy or a starting server gives."""
    code = error.response.status_code if isinstance(error, httpx2.HTTPStatusError) else 0
    detail = str(error) or type(error).__name__
    return KubeError(f"{verb} {_where(kind, name, namespace)}: {detail}", code=code)
