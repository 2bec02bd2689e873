"""AWS service models, small and shared: shapes and operations read from botocore's own data.

botocore's ServiceModel makes a new Shape object for every place a shape is used; a daemon that knows ec2
would hold tens of thousands. Here a shape with the same traits exists once, is made when first asked for,
and carries the per-protocol plans (`plans`) that the readers and writers compute once. Documentation is
dropped on loading: it is half of a model.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

from botocore.loaders import create_loader

_LOCATED = frozenset({"header", "headers", "uri", "querystring", "statusCode"})


class Shape:
    """One shape as one place uses it: the shape's own traits, overridden by those of the reference."""

    __slots__ = (
        "_member_refs",
        "_members",
        "_parts",
        "_service",
        "enum",
        "kind",
        "maximum",
        "minimum",
        "name",
        "pattern",
        "plans",
        "required",
        "traits",
    )

    def __init__(self, service: Service, name: str, traits: dict[str, Any]) -> None:
        self._service = service
        self.name = name
        self.kind: str = traits["type"]
        self.traits = traits
        self.required: tuple[str, ...] = tuple(traits.get("required", ()))
        self.enum: tuple[str, ...] = tuple(traits.get("enum", ()))
        self.minimum: float | None = traits.get("min")
        self.maximum: float | None = traits.get("max")
        self.pattern: str | None = traits.get("pattern")
        #: what readers and writers computed for this shape, by their own key
        self.plans: dict[Any, Any] = {}
        self._members: dict[str, Shape] | None = None
        self._parts: dict[str, Shape] = {}

    @property
    def members(self) -> dict[str, Shape]:
        """A structure's members by name, in the model's order."""
        if self._members is None:
            refs = self.traits.get("members", {})
            self._members = {name: self._service.shape(ref) for name, ref in refs.items()}
        return self._members

    @property
    def member(self) -> Shape:
        """What a list is made of."""
        return self._part("member")

    @property
    def key(self) -> Shape:
        return self._part("key")

    @property
    def value(self) -> Shape:
        return self._part("value")

    @property
    def location_name(self) -> str | None:
        return self.traits.get("locationName")

    @property
    def location(self) -> str | None:
        """Where in an HTTP message a top-level member travels; None: in the body."""
        where: str | None = self.traits.get("location")
        return where if where in _LOCATED else None

    @property
    def flattened(self) -> bool:
        return bool(self.traits.get("flattened"))

    @property
    def is_document(self) -> bool:
        return bool(self.traits.get("document"))

    def _part(self, name: str) -> Shape:
        part = self._parts.get(name)
        if part is None:
            part = self._parts[name] = self._service.shape(self.traits[name])
        return part

    def __repr__(self) -> str:
        return f"Shape({self.name})"


class Operation:
    """One operation: its HTTP binding, its shapes, and how its modelled errors look."""

    __slots__ = ("errors", "input", "method", "name", "output", "plans", "result_wrapper", "service", "uri")

    def __init__(self, service: Service, name: str, model: dict[str, Any]) -> None:
        self.service = service
        self.name = name
        http = model.get("http", {})
        self.method: str = http.get("method", "POST")
        self.uri: str = http.get("requestUri", "/")
        self.input: Shape | None = service.shape(model["input"]) if "input" in model else None
        self.output: Shape | None = service.shape(model["output"]) if "output" in model else None
        self.result_wrapper: str | None = model.get("output", {}).get("resultWrapper")
        #: error code -> its shape
        self.errors: dict[str, Shape] = {}
        self.plans: dict[Any, Any] = {}
        for ref in model.get("errors", ()):
            shape = service.shape(ref)
            code = shape.traits.get("error", {}).get("code") or shape.name
            self.errors[code] = shape


class Service:
    """A service's model. `name` is botocore's ("ec2"), `signing_name` what a signature's scope says."""

    def __init__(self, name: str, model: dict[str, Any]) -> None:
        self.name = name
        self.metadata: dict[str, Any] = model["metadata"]
        self.protocol: str = self.metadata["protocol"]
        self.signing_name: str = self.metadata.get("signingName") or self.metadata["endpointPrefix"]
        self.target_prefix: str | None = self.metadata.get("targetPrefix")
        self.version: str = self.metadata["apiVersion"]
        self.namespace: str | None = self.metadata.get("xmlNamespace")
        self.json_version: str = self.metadata.get("jsonVersion", "1.1")
        self.plans: dict[Any, Any] = {}
        self._operation_models: dict[str, dict[str, Any]] = model["operations"]
        self._shape_models: dict[str, dict[str, Any]] = model["shapes"]
        self._operations: dict[str, Operation] = {}
        self._shapes: dict[Any, Shape] = {}

    @property
    def operation_names(self) -> tuple[str, ...]:
        return tuple(self._operation_models)

    def operation(self, name: str) -> Operation | None:
        """The operation, or None when the service has none of this name."""
        found = self._operations.get(name)
        if found is None and name in self._operation_models:
            found = self._operations[name] = Operation(self, name, self._operation_models[name])
        return found

    def http_of(self, name: str) -> dict[str, Any]:
        """The operation's HTTP binding without building its shapes."""
        binding: dict[str, Any] = self._operation_models[name].get("http", {})
        return binding

    def is_deprecated(self, name: str) -> bool:
        return bool(self._operation_models[name].get("deprecated"))

    def input_members(self, name: str) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """An operation's input members' own traits and the required ones, without building shapes."""
        ref = self._operation_models[name].get("input")
        shape = self._shape_models[ref["shape"]] if ref else {}
        return shape.get("members", {}), shape.get("required", [])

    def shape(self, ref: dict[str, Any]) -> Shape:
        """The shape that `{"shape": name, …traits}` means; the same object for equal references."""
        name: str = ref["shape"]
        key: Any = name if len(ref) == 1 else (name, repr(ref))
        shape = self._shapes.get(key)
        if shape is None:
            traits = self._shape_models[name]
            if len(ref) > 1:
                traits = {**traits, **ref}
                del traits["shape"]
            shape = self._shapes[key] = Shape(self, name, traits)
        return shape


@cache
def service_names() -> frozenset[str]:
    return frozenset(create_loader().list_available_services("service-2"))


@cache
def service(name: str) -> Service:
    """The model of botocore's service `name`, loaded when first used; LookupError when there is none."""
    if name not in service_names():
        raise LookupError(f"botocore has no service {name!r}")
    # A loader of its own: botocore's loaders keep everything they ever loaded, documentation included.
    return Service(name, _slim(create_loader().load_service_model(name, "service-2")))


def _slim(value: Any) -> Any:
    """The same data without documentation, in plain dicts, equal strings kept once."""
    if isinstance(value, dict):
        # "documentation" as text describes; as a dict it is a member that happens to be called so.
        return {
            sys.intern(key): _slim(item)
            for key, item in value.items()
            if key not in ("documentation", "documentationUrl", "examples") or isinstance(item, dict)
        }
    if isinstance(value, list):
        return [_slim(item) for item in value]
    return sys.intern(value) if isinstance(value, str) else value
