"""Which operation a request calls, its parameters, and the answer in its own protocol.

target = identify(request)                  AwsError when there is no such operation
params = parse(target, request)             AwsError when malformed or against the model
render(target, result, request_id)          TypeError when the result does not fit the model
render_error(target, error, request_id)     target = guess(request) when identify itself failed
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cloister.wire import ec2, form, json, query, rest, validate
from cloister.wire.errors import AwsError
from cloister.wire.http import HttpRequest, HttpResponse
from cloister.wire.model import Operation, Service
from cloister.wire.model import service as load

#: signing name -> botocore's services that sign with it, where that is not one of the same name
SIGNING_NAMES: dict[str, tuple[str, ...]] = {
    "airflow": ("mwaa",),
    "aoss": ("opensearchserverless",),
    "aps": ("amp",),
    "cassandra": ("keyspaces", "keyspacesstreams"),
    "dynamodb": ("dynamodb", "dynamodbstreams"),
    "elasticfilesystem": ("efs",),
    "elasticloadbalancing": ("elbv2", "elb"),
    "elasticmapreduce": ("emr",),
    "es": ("opensearch", "es"),
    "forecast": ("forecast", "forecastquery"),
    "kinesisanalytics": ("kinesisanalyticsv2", "kinesisanalytics"),
    "monitoring": ("cloudwatch",),
    "personalize": ("personalize", "personalize-runtime", "personalize-events"),
    "rds": ("rds", "docdb", "neptune"),
    "s3": ("s3", "s3control"),
    "sagemaker": (
        "sagemaker",
        "sagemaker-runtime",
        "sagemaker-featurestore-runtime",
        "sagemaker-metrics",
        "sagemaker-a2i-runtime",
        "sagemaker-edge",
    ),
    "ses": ("ses", "sesv2"),
    "servicequotas": ("service-quotas",),
    "sso": ("sso-admin",),
    "states": ("stepfunctions",),
    "tagging": ("resourcegroupstaggingapi",),
    "timestream": ("timestream-query", "timestream-write"),
}
#: targets and versions of the services that may be called unsigned or with an unusual scope
_BY_TARGET = {"SageMaker": "sagemaker", "Logs_20140328": "logs"}
_BY_VERSION = {"2016-11-15": "ec2", "2010-05-08": "iam", "2011-06-15": "sts"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a request calls. `service` is botocore's name; `operation` is "" in a guess."""

    service: str
    operation: str
    #: "ec2", "query", "json", "rest-xml" or "rest-json"
    protocol: str
    #: the request's method was HEAD: the answer has no body
    head: bool = False


def signing_name_of(target: Target) -> str:
    """The service that a signature's scope must name for this target: "monitoring" for cloudwatch."""
    return load(target.service).signing_name


def signing_name(request: HttpRequest) -> str | None:
    """The service in the signature's credential scope; read for routing, trusted by nobody until verified."""
    authorization = request.header("authorization")
    if authorization is not None:
        _, found, rest_of = authorization.partition("Credential=")
        scope = rest_of.partition(",")[0].strip() if found else ""
    elif "X-Amz-Credential=" in request.query:
        _, _, rest_of = request.query.partition("X-Amz-Credential=")
        scope = rest_of.partition("&")[0].replace("%2F", "/").replace("%2f", "/")
    else:
        return None
    parts = scope.rsplit("/", 4)
    return parts[3] if len(parts) == 5 else None


def identify(request: HttpRequest, service: str | None = None) -> Target:
    """The operation a request calls.

    `service`: botocore's name when the caller knows it already (the S3 door). Raises AwsError:
    UnknownOperationException, InvalidAction, MethodNotAllowed … as the protocol has it, and
    MissingAuthenticationToken (403) when nothing tells the service.
    """
    wanted = request.header("x-amz-target")
    if wanted is not None:
        return _identify_json(request, wanted, service)
    scope = signing_name(request)
    names = (service,) if service else SIGNING_NAMES.get(scope, (scope,)) if scope else ()
    services = [found for name in names if (found := _find(name)) is not None]
    pairs = _form_pairs(request, services)
    if pairs is not None:
        return _identify_query(services, pairs)
    for candidate in services:
        if candidate.protocol in ("rest-xml", "rest-json"):
            operation = rest.match(candidate, request)
            if operation is not None:
                return Target(
                    service=candidate.name,
                    operation=operation,
                    protocol=candidate.protocol,
                    head=request.method == "HEAD",
                )
        elif request.path.startswith("/service/"):
            operation = request.path.rpartition("/")[2]
            if candidate.operation(operation):
                return Target(service=candidate.name, operation=operation, protocol=candidate.protocol)
    raise _unknown(services, request, scope)


def _find(name: str) -> Service | None:
    try:
        return load(name)
    except LookupError:
        return None


def _identify_json(request: HttpRequest, wanted: str, service: str | None) -> Target:
    prefix, _, operation = wanted.rpartition(".")
    scope = signing_name(request)
    by_target = _BY_TARGET.get(prefix)
    names = (
        [service] if service else [by_target] if by_target else list(SIGNING_NAMES.get(scope or "", (scope,)))
    )
    for name in names:
        found = _find(name) if name else None
        if found is not None and found.target_prefix == prefix and operation in found.operation_names:
            return Target(service=found.name, operation=operation, protocol="json")
    raise AwsError("UnknownOperationException", f"The operation {wanted[:200]!r} is not known.")


def _form_pairs(request: HttpRequest, services: list[Service]) -> list[tuple[str, str]] | None:
    """The form parameters of a call in the query or ec2 protocol; None when it is not one."""
    if services and all(found.protocol.startswith("rest") for found in services):
        return None
    content_type = (request.header("content-type") or "").lower()
    is_form = request.method == "POST" and (
        content_type.startswith("application/x-www-form-urlencoded") or b"Action=" in request.body[:4096]
    )
    if not is_form and "Action=" not in request.query:
        return None
    return form.parameters(request.query, request.body if is_form else b"")


def _identify_query(services: list[Service], pairs: list[tuple[str, str]]) -> Target:
    action, version = form.action(pairs)
    if not services and version in _BY_VERSION:
        services = [load(_BY_VERSION[version])]
    if not action:
        raise AwsError("MissingAction", "The request must contain the parameter Action")
    for found in services:
        # Some services (cloudwatch) speak the query protocol beside the one that their model names first.
        spoken = "query" if "query" in found.metadata.get("protocols", ()) else found.protocol
        if spoken in ("ec2", "query") and action in found.operation_names:
            # Several services may sign with one name (elb, elbv2); the version tells them apart.
            if len(services) > 1 and version != found.version:
                continue
            return Target(service=found.name, operation=action, protocol=spoken)
    if services and services[0].protocol == "query":
        message = f"Could not find operation {action[:200]} for version {version or 'NO_VERSION_SPECIFIED'}"
    else:
        message = f"The action {action[:200]} is not valid for this web service."
    raise AwsError("InvalidAction", message)


def _unknown(services: list[Service], request: HttpRequest, scope: str | None) -> AwsError:
    if not services:
        if scope is None:
            return AwsError("MissingAuthenticationToken", "Missing Authentication Token", 403)
        return AwsError("UnknownOperationException", f"Cloister knows no service {scope[:100]!r}.", 404)
    protocol = services[0].protocol
    if protocol == "rest-xml":
        return AwsError(
            "MethodNotAllowed",
            "The specified method is not allowed against this resource.",
            405,
            Method=request.method,
            ResourceType=request.path[:1024],
        )
    if protocol in ("ec2", "query"):
        return AwsError("MissingAction", "The request must contain the parameter Action")
    return AwsError(
        "UnknownOperationException", f"{request.method} {request.path[:200]} is not an operation.", 404
    )


def guess(request: HttpRequest) -> Target:
    """The protocol in which to answer a request that `identify` refused. Never raises."""
    head = request.method == "HEAD"
    scope = signing_name(request)
    if request.header("x-amz-target") is not None:
        name = _BY_TARGET.get((request.header("x-amz-target") or "").rpartition(".")[0], scope or "")
        return Target(service=name, operation="", protocol="json", head=head)
    found = _find(SIGNING_NAMES.get(scope, (scope,))[0]) if scope else None
    if found is not None:
        return Target(service=found.name, operation="", protocol=found.protocol, head=head)
    is_form = "Action=" in request.query or b"Action=" in request.body[:4096]
    if is_form:
        is_ec2 = b"Version=2016-11-15" in request.body or "Version=2016-11-15" in request.query
        return Target(service="", operation="", protocol="ec2" if is_ec2 else "query", head=head)
    content_type = (request.header("content-type") or "").lower()
    return Target(
        service="", operation="", protocol="json" if "json" in content_type else "rest-xml", head=head
    )


def not_implemented(target: Target) -> AwsError:
    """For an operation that AWS has and Cloister has not. 501, which SDKs do not retry."""
    message = f"Cloister does not implement {target.service}:{target.operation}."
    return AwsError("NotImplemented", message, 501)


def _operation(target: Target) -> Operation:
    operation = load(target.service).operation(target.operation)
    if operation is None:
        raise LookupError(f"{target.service} has no operation {target.operation!r}")
    return operation


def parse(target: Target, request: HttpRequest) -> dict[str, Any]:
    """The operation's parameters by botocore's member names, checked against the model.

    Values: str, int, float, bool, bytes, aware datetime, list, dict. Absent members are absent. Raises
    AwsError: malformed bodies (SerializationException, MalformedXML, MalformedQueryString …), unknown
    members, broken constraints.
    """
    operation = _operation(target)
    protocol = target.protocol
    if protocol == "json":
        params = json.parse(operation, request)
    elif protocol == "ec2":
        params = ec2.parse(operation, request)
    elif protocol == "query":
        params = query.parse(operation, request)
    elif protocol in ("rest-xml", "rest-json"):
        params = rest.parse(operation, request)
    else:
        raise AwsError("NotImplemented", f"Cloister does not speak the protocol {protocol}.", 501)
    validate.check(target.service, protocol, operation.input, params)
    return params


def render(target: Target, result: Mapping[str, Any] | None, request_id: str) -> HttpResponse:
    """A successful answer. Members that are None are left out; TypeError when `result` does not fit the
    operation's output: an unknown member, a wrong type, a timestamp without a zone."""
    operation = _operation(target)
    result = result or {}
    if target.protocol == "json":
        return json.render(operation, result, request_id)
    if target.protocol == "ec2":
        return ec2.render(operation, result, request_id)
    if target.protocol == "query":
        return query.render(operation, result, request_id)
    if target.protocol in ("rest-xml", "rest-json"):
        return rest.render(operation, result, request_id)
    raise TypeError(f"Cloister does not speak the protocol {target.protocol}.")


def render_error(target: Target | None, error: AwsError, request_id: str) -> HttpResponse:
    """An error in the protocol of the call (use `guess` when there is no target; without, as S3 writes it).
    A modelled error keeps the model's HTTP status unless the raiser chose one."""
    target = target or Target(service="", operation="", protocol="rest-xml")
    service = _find(target.service) if target.service else None
    operation = service.operation(target.operation) if service and target.operation else None
    status = error.status
    modelled = operation.errors.get(error.code) if operation else None
    if status == 400 and modelled is not None:
        status = modelled.traits.get("error", {}).get("httpStatusCode", 400)
    if target.protocol == "ec2":
        return ec2.render_error(error, status, request_id)
    if target.protocol == "query":
        return query.render_error(service, error, status, request_id)
    if target.protocol == "rest-xml":
        return rest.render_error(error, status, request_id, head=target.head)
    return json.render_error(service, operation, error, status, request_id)
