"""One API call, from bytes to bytes: identify, authenticate, validate, authorise, run, commit, render.

The order is AWS's: a wrong signature is told before a wrong parameter, and neither reaches a handler. Calls
of the side services take the same way, and end in `side` instead of a handler.
Any exception that is not an AwsError is a defect: logged with the request id and told as InternalFailure.
"""

from __future__ import annotations

import hashlib
import logging
from typing import Any

from cloister import ids
from cloister.authorize import call_keys, decide_call, denied
from cloister.credentials import Credentials
from cloister.engine import Engine
from cloister.iam import collect
from cloister.iam.context import global_keys
from cloister.iam.decide import Request
from cloister.iam.model import Principal
from cloister.services.api import OPERATIONS, Call, Observe, Operation, Origin, Params, needs_of
from cloister.side import actions
from cloister.side.process import SideServices
from cloister.store import is_full
from cloister.wire import denials, protocol, sigv4
from cloister.wire.errors import AwsError
from cloister.wire.http import HttpRequest, HttpResponse
from cloister.wire.model import service as load
from cloister.world import World

log = logging.getLogger(__name__)

#: the largest body of a control-plane call; PutLogEvents may carry 1 MiB of events in JSON
MAX_BODY = 4 * 1024 * 1024


class Dispatcher:
    """Answers the calls of every service but S3. `deps` is handed to handlers as `call.deps`; `side` carries
    out the calls of services that have no handlers here."""

    def __init__(
        self,
        engine: Engine,
        credentials: Credentials,
        *,
        account: str,
        region: str,
        deps: dict[str, Any],
        side: SideServices | None = None,
        observe: Observe = lambda *_: None,
    ) -> None:
        self._observe = observe
        self._engine = engine
        self._credentials = credentials
        self._account = account
        self._region = region
        self._deps = deps
        self._side = side

    async def handle(
        self, request: HttpRequest, origin: Origin, *, service: str | None = None
    ) -> HttpResponse:
        """The answer to one request. Never raises. `service`: the only one that is answered where the request
        came in, by botocore's name."""
        request_id = ids.request_id()
        target = protocol.guess(request)
        try:
            target = protocol.identify(request)
            if service is not None and target.service != service:
                raise denials.wrong_service(protocol.signing_name_of(target), load(service).signing_name)
            principal = self._authenticate(request, target)
            if self._side is not None and target.service in actions.OPERATIONS:
                return await self._beside(self._side, target, request, principal, origin, request_id)
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
        except Exception as error:
            log.exception("request %s failed inside Cloister", request_id)
            sentence = f"Cloister failed on this request; its daemon.log says why, under {request_id}."
            if is_full(error):
                sentence = "No space is left on the disk of Cloister's state folder."
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

    async def _beside(
        self,
        side: SideServices,
        target: protocol.Target,
        request: HttpRequest,
        principal: Principal,
        origin: Origin,
        request_id: str,
    ) -> HttpResponse:
        """A call of a side service: decided on here, carried out there."""
        params, service = protocol.parse(target, request), target.service
        names = actions.lookups(service, target.operation, params)
        where = actions.Where(
            service=service,
            account=self._account,
            region=self._region,
            found=await side.arns(service, names) if names else {},
        )
        needs = actions.needs(target.operation, params, where)
        world = self._engine.world
        context = global_keys(
            principal,
            now=self._engine.clock(),
            address=origin.address,
            endpoint_id=origin.endpoint_id,
            vpc_id=origin.vpc_id,
            secure=origin.secure,
            user_agent=request.header("user-agent") or "",
            region=self._region,
            tags=collect.principal_tags(world, principal),
        ) | actions.context(service, params)
        for need in needs:
            asked = Request(
                principal=principal,
                action=need.action,
                resource=need.resource,
                context=context,
                untold=actions.untold(service),
            )
            decision = decide_call(world, asked, endpoint_id=origin.endpoint_id)
            self._observe(origin, need.action, need.resource, decision)
            if not decision.allowed:
                raise denied(service, decision.sentence())
        answer = await side.call(service, target.operation, params, target.protocol)
        if answer.header("x-amzn-requestid") is None:
            headers = (*answer.headers, ("x-amzn-RequestId", request_id))
            answer = HttpResponse(answer.status, headers, answer.body)
        return answer

    def _run(self, operation: Operation, call: Call, params: Params) -> Params:
        authorize(self._engine.world, operation, call, params, self._observe)
        with self._engine.transaction() as tx:
            call.tx = tx
            result = operation.handler(call, params)
            if params.get("DryRun"):
                raise AwsError(
                    "DryRunOperation", "Request would have succeeded, but DryRun flag is set.", 412
                )
        return result


def authorize(
    world: World, operation: Operation, call: Call, params: Params, observe: Observe = lambda *_: None
) -> None:
    """Raise AccessDenied, in the service's words, unless every resource of the call is allowed."""
    if operation.action is None and call.origin.endpoint_id is None:
        return
    context = call_keys(call)
    for need in needs_of(call, operation, params):
        keys = {key.lower(): value for key, value in need.context.items()}
        decision = decide_call(
            world,
            Request(
                principal=call.principal,
                action=need.action,
                resource=need.resource,
                context=context | keys,
            ),
            endpoint_id=call.origin.endpoint_id,
            needs_permission=operation.action is not None,
        )
        observe(call.origin, need.action, need.resource, decision)
        if not decision.allowed:
            raise denied(operation.service, decision.sentence())
