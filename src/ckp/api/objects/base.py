"""What the read models share: camelCase names on the wire, tolerance towards what is absent, and what the CRD's schema holds beyond the type."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator, model_validator
from pydantic.alias_generators import to_camel

from ckp.api.names import CLUSTER_NAME_LABEL
from ckp.kits.clock import parse_rfc3339
from ckp.kits.errors import CkpError


class Schema:
    """The CRD schema's keywords for a field beyond its type, as metadata of its annotation.

    Args:
        description: for people who read the CRD (`kubectl explain`).
        required: whether the API server refuses an object without the field. Reading never does.
        defaulted: whether the API server fills in the model's default.
        keywords: further keywords of OpenAPI v3 (`format`, `minimum`, `enum`, …); `_` in a name stands for `-`.
    """

    def __init__(self, description: str = "", *, required: bool = False, defaulted: bool = False, **keywords: Any) -> None:
        self.description = description
        self.required = required
        self.defaulted = defaulted
        self.keywords = {name.replace("_", "-"): value for name, value in keywords.items()}


class ApiModel(BaseModel):
    """A part of an object. Unknown fields are kept; a null counts as absent, as it does for the API server."""

    model_config = ConfigDict(frozen=True, extra="allow", alias_generator=to_camel, coerce_numbers_to_str=True, hide_input_in_errors=True)

    preserve_unknown: ClassVar[bool] = False
    """Whether the API server keeps fields that the schema does not name."""
    opaque: ClassVar[bool] = False
    """Whether the schema names no field at all: the API server stores what it is given."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        if isinstance(data, dict) and any(value is None for value in data.values()):
            return {key: value for key, value in data.items() if value is not None}
        return data


def lenient(otherwise: Callable[[], Any]) -> WrapValidator:
    """For a part that the CRD's schema does not check: where it cannot be read it counts as `otherwise()`, so that one odd object does not hide all others."""

    def read(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            return otherwise()

    return WrapValidator(read)


Labels = Mapping[str, str]
Texts = tuple[str, ...]
Int32 = Annotated[int, Schema(format="int32")]
Time = Annotated[str, Schema(format="date-time")]
"""RFC 3339. Text, so that one bad time does not keep the rest of an object from being read."""


class Condition(ApiModel):
    """A condition as Cluster API v1beta1 has them. Without a type and status: there is none."""

    type: Annotated[str, Schema(required=True)] = ""
    status: Annotated[str, Schema(required=True, enum=["True", "False", "Unknown"])] = ""
    severity: str = ""
    reason: str = ""
    message: str = ""
    last_transition_time: Annotated[Time, Schema(required=True)] = ""

    @property
    def is_true(self) -> bool:
        """Whether it is there and True."""
        return self.status == "True"

    @property
    def is_false(self) -> bool:
        """Whether it is there and False; an Unknown one is neither."""
        return self.status == "False"


Conditions = Annotated[tuple[Condition, ...], Schema(x_kubernetes_list_type="map", x_kubernetes_list_map_keys=["type"])]


class ObjectReference(ApiModel):
    """core/v1 ObjectReference."""

    api_version: str = ""
    kind: str = ""
    namespace: str = ""
    name: str = ""
    uid: str = ""
    field_path: str = ""
    resource_version: str = ""

    def __bool__(self) -> bool:
        """Whether it refers to anything."""
        return bool(self.name or self.uid)


class Endpoint(ApiModel):
    """Of an API server."""

    host: str = ""
    port: Int32 = 0


ControlPlaneEndpoint = Annotated[Endpoint, Schema("Where the API server is reached.")]


class ObjectMeta(ApiModel):
    """meta/v1 ObjectMeta, as far as it is read. Its schema is the API server's own."""

    opaque: ClassVar[bool] = True

    name: str = ""
    namespace: str = ""
    uid: str = ""
    labels: Labels = Field(default_factory=dict)
    annotations: Labels = Field(default_factory=dict)
    finalizers: Texts = ()
    creation_timestamp: str = ""
    deletion_timestamp: str = ""


class TemplateMeta(ApiModel):
    """What a template may put on the objects that are made from it."""

    labels: Labels = Field(default_factory=dict)
    annotations: Labels = Field(default_factory=dict)


class Resource(ApiModel):
    """A whole object."""

    api_version: str = ""
    kind: str = ""
    metadata: ObjectMeta = Field(default_factory=ObjectMeta)

    @classmethod
    def of(cls, obj: Mapping[str, Any]) -> Self:
        """Read an object as the API server returns it.

        Raises:
            CkpError: a field is of another type than the CRD allows; with the names of all such fields.
        """
        try:
            return cls.model_validate(obj)
        except ValidationError as error:
            meta = obj.get("metadata") or {}
            wrong = "\n".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors(include_url=False, include_input=False))
            raise CkpError(f"{cls.__name__} {meta.get('namespace', '')}/{meta.get('name', '')} can't be read", details=wrong) from None

    @property
    def name(self) -> str:
        """Its name."""
        return self.metadata.name

    @property
    def namespace(self) -> str:
        """Its namespace."""
        return self.metadata.namespace

    @property
    def uid(self) -> str:
        """Its uid."""
        return self.metadata.uid

    @property
    def deleting(self) -> bool:
        """Whether its deletion was requested."""
        return bool(self.metadata.deletion_timestamp)

    @property
    def cluster_name(self) -> str:
        """The name of the cluster that it belongs to, from its label; "" if it belongs to none."""
        return self.metadata.labels.get(CLUSTER_NAME_LABEL, "")


def find_condition(conditions: Iterable[Condition], kind: str) -> Condition:
    """The condition of this type; an empty one if it is absent."""
    return next((condition for condition in conditions if condition.type == kind), Condition())


def time_of(text: str) -> datetime | None:
    """A time of an object; None where there is none.

    Raises:
        ValueError: it is not RFC 3339.
    """
    return parse_rfc3339(text) if text else None
