"""One API call, from bytes to bytes: identify, authenticate, validate, authorise, run, commit, render.

The order is AWS's: a wrong signature is told before a wrong parameter, and neither reaches a handler.
Any exception that is not an AwsError is a defect: logged with the request id and told as InternalFailure.
"""

from __future__ import annotations

import hashlib
import logging
from typing import Any

from cloister import ids
from cloister.credentials import Credentials
from cloister.engine import Engine
from cloister.iam import collect
from cloister.iam.context import global_keys
from cloister.iam.decide import Request, decide
from cloister.iam.model import Principal
from cloister.services.api import OPERATIONS, Call, Operation, Origin, Params
from cloister.wire import denials, protocol, sigv4
from cloister.wire.errors import AwsError
from cloister.wire.http import HttpRequest, HttpResponse
from cloister.world import World

log = logging.getLogger(__name__)

#: the largest body of a control-plane call; PutLogEvents may carry 1 MiB of events in JSON
MAX_BODY = 4 * 1024 * 1024


class Dispatcher:
    """Answers the calls of every service but S3. `deps` is handed to handlers as `call.deps`."""

    def __init__(
        self,
        engine: Engine,
        credentials: Credentials,
        *,
        account: str,
        region: str,
        deps: dict[str, Any],
    ) -> None:
        self._engine = engine
        self._credentials = credentials
        self._account = account
        self._region = region
        self._deps = deps

    def handle(self, request: HttpRequest, origin: Origin) -> HttpResponse:
        """The answer to one request. Never raises."""
        request_id = ids.request_id()
        target = protocol.guess(request)
        try:
            target = protocol.identify(request)
            principal = self._authenticate(request, target)
            operation = OPERATIONS.get((target.service, target.operation))
            if operation is None:
                raise protocol.not_implemented(target)
            params = protocol.parse(target, request)
            call = Call(
                tx=self._engine.world.begin(),
                principal=principal,
                account=self._account,
                region=self._region,
                now=self._engine.clock(),
                request_id=request_id,
                origin=origin,
                user_agent=request.header("user-agent") or "",
                deps=self._deps,
            )
            result = self._run(operation, call, params)
            return protocol.render(target, result, request_id)
        except AwsError as error:
            return protocol.render_error(target, error, request_id)
        except Exception:
            log.exception("request %s failed inside Cloister", request_id)
            sentence = f"Cloister failed on this request; its daemon.log says why, under {request_id}."
            return protocol.render_error(target, AwsError("InternalFailure", sentence, 500), request_id)

    def _authenticate(self, request: HttpRequest, target: protocol.Target) -> Principal:
        now = self._engine.clock()
        signed_by = sigv4.parse_authorization(request)
        service = protocol.signing_name_of(target)
        if signed_by is None:
            raise sigv4.missing_authentication(service)
        try:
            secret, principal = self._credentials.lookup(signed_by.access_key_id, signed_by.token, now)
        except AwsError as error:
            raise denials.of_key(service, error, signed_by.access_key_id) from None
        sigv4.verify(
            request,
            signed_by,
            secret,
            now,
            service=service,
            region=self._region,
            body_sha256=hashlib.sha256(request.body).hexdigest(),
        )
        return principal

    def _run(self, operation: Operation, call: Call, params: Params) -> Params:
        authorize(self._engine.world, operation, call, params)
        with self._engine.transaction() as tx:
            call.tx = tx
            result = operation.handler(call, params)
            if params.get("DryRun"):
                raise AwsError(
                    "DryRunOperation", "Request would have succeeded, but DryRun flag is set.", 412
                )
        return result


def authorize(world: World, operation: Operation, call: Call, params: Params) -> None:
    """Raise AccessDenied, in the service's words, unless every resource of the call is allowed."""
    if operation.action is None:
        return
    policies = collect.identity_policies(world, call.principal)
    context = global_keys(
        call.principal,
        now=call.now,
        address=call.origin.address,
        endpoint_id=call.origin.endpoint_id,
        vpc_id=call.origin.vpc_id,
        secure=call.origin.secure,
        user_agent=call.user_agent,
        region=call.region,
        tags=collect.principal_tags(world, call.principal),
    )
    if operation.context is not None:
        context |= {key.lower(): value for key, value in operation.context(call, params).items()}
    for resource in operation.resources(call, params) if operation.resources else ["*"]:
        request = Request(
            principal=call.principal, action=operation.action, resource=resource, context=context
        )
        decision = decide(request, policies)
        if not decision.allowed:
            raise denied(operation.service, decision.sentence())


def denied(service: str, sentence: str) -> AwsError:
    """A refusal in the service's own words."""
    if service == "ec2":
        return AwsError(
            "UnauthorizedOperation", f"You are not authorized to perform this operation. {sentence}", 403
        )
    code = "AccessDenied" if service in ("iam", "sts") else "AccessDeniedException"
    return AwsError(code, sentence, 400 if code.endswith("Exception") else 403)
