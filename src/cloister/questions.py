"""The questions that `cloister why`, `check` and `receipt` ask the daemon, over its control socket.

POST /why    {"job": NAME} | {"from": ENI, "to": ADDRESS[:PORT], "protocol": …}
             | {"from": ENI, "request": "METHOD URL", "role": NAME, "action": "kms:Decrypt[=ARN]"}
POST /check  {"request": CreateProcessingJob's parameters, "services": [NAME]}
POST /receipt  {"job": NAME}
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from aiohttp import web

from cloister import ids
from cloister.credentials import Credentials
from cloister.engine import Engine
from cloister.iam.model import Role
from cloister.jobs.model import ProcessingJob
from cloister.receipt_key import signing_key
from cloister.services.api import Call, Origin
from cloister.vpc.explain import explain
from cloister.vpc.flow import Flow, Verdict
from cloister.vpc.model import NetworkInterface
from cloister.why.job import Answer, Place, why_job
from cloister.why.preflight import Facts, preflight
from cloister.why.receipt import receipt, refused, sign
from cloister.why.request import is_address, session_of, why_request
from cloister.wire import protocol
from cloister.wire.errors import AwsError
from cloister.wire.http import HttpRequest
from cloister.witness import Witness

_PROTOCOLS = ("tcp", "udp", "icmp")
_CREATE = protocol.Target(service="sagemaker", operation="CreateProcessingJob", protocol="json")


class BadQuestion(ValueError):
    """The question names what is not there, or cannot be understood."""


class Questions:
    def __init__(
        self,
        state: Path,
        engine: Engine,
        credentials: Credentials,
        witness: Witness,
        *,
        look: Callable[[Mapping[str, Any]], Awaitable[Facts]],
        region: str,
        account: str,
        command: str = "cloister",
    ) -> None:
        self._look = look
        self._command = command
        self._state = state
        self._engine = engine
        self._witness = witness
        self._credentials = credentials
        self._region = region
        self._account = account

    def add_routes(self, app: web.Application) -> None:
        app.router.add_post("/why", _answering(self.why))
        app.router.add_post("/check", _answering(self.check))
        app.router.add_post("/receipt", _answering(self.receipt))

    def why(self, question: dict[str, Any]) -> dict[str, Any]:
        if "job" in question:
            return self._why_job(str(question["job"]))
        interface = self._interface(str(question.get("from", "")))
        if "request" in question:
            verdict = self._why_request(interface, question)
            what = f"{interface.interface_id}: {question['request']}"
        else:
            verdict = explain(self._engine.world, _flow(interface, question))
            what = f"{interface.interface_id} to {question['to']}"
        return {"answers": [_answer(Answer(what=what, verdict=verdict))]}

    def receipt(self, question: dict[str, Any]) -> dict[str, Any]:
        job = self._job(str(question.get("job")))
        body = receipt(job, self._witness.record(job), now=self._engine.clock())
        return sign(body, signing_key(self._state))

    def _job(self, name: str) -> ProcessingJob:
        job = self._engine.world.get(ProcessingJob, name)
        if job is None:
            raise BadQuestion(f"No job is named {name!r}. `{self._command} status` lists the latest.")
        return job

    def _why_job(self, name: str) -> dict[str, Any]:
        world, job = self._engine.world, self._job(name)
        place = Place(region=self._region, account=self._account, now=self._engine.clock())
        return {
            "job": name,
            "status": job.status,
            "failure_reason": job.failure_reason if job.terminal else None,
            "ended": job.terminal,
            "refused": refused(self._witness.record(job)),
            "answers": [_answer(each) for each in why_job(world, job, place)],
        }

    def _why_request(self, interface: NetworkInterface, question: dict[str, Any]) -> Verdict:
        method, _, url = str(question["request"]).partition(" ")
        if not method.isalpha() or not url:
            raise BadQuestion(
                f"{question['request']!r} is no METHOD URL, as in 'GET s3://BUCKET/KEY' or "
                "'POST https://sts.us-east-1.amazonaws.com/'."
            )
        principal = None
        if question.get("role"):
            role = self._engine.world.get(Role, str(question["role"]).rsplit("/", 1)[-1])
            if role is None:
                raise BadQuestion(f"There is no role {question['role']!r}.")
            principal = session_of(role, self._account)
        elif not question.get("unsigned"):
            principal = self._credentials.root
        return why_request(
            self._engine.world,
            interface,
            method,
            url,
            principal=principal,
            region=self._region,
            account=self._account,
            now=self._engine.clock(),
            action=str(question["action"]) if question.get("action") else None,
        )

    def _interface(self, text: str) -> NetworkInterface:
        world = self._engine.world
        found = world.get(NetworkInterface, text) or next(
            (one for one in world.all(NetworkInterface) if any(a.address == text for a in one.addresses)),
            None,
        )
        if found is None:
            raise BadQuestion(
                f"No network interface is {text!r}; `aws ec2 describe-network-interfaces` lists them."
            )
        return found

    async def check(self, question: dict[str, Any]) -> dict[str, Any]:
        body = json.dumps(question.get("request")).encode()
        request = HttpRequest(method="POST", path="/", query="", headers=(), body=body)
        try:
            params = protocol.parse(_CREATE, request)
        except AwsError as error:
            # AWS tells all that is wrong in one sentence: "2 validation errors detected: …; …"
            told = re.sub(r"^\d+ validation errors? detected: ", "", error.message).split("; ")
            wrong = {"ok": False, "about": "request", "fix": None, "steps": []}
            return {"ok": False, "findings": [{**wrong, "sentence": each} for each in told]}
        facts = await self._look(params)
        call = Call(
            tx=self._engine.world.begin(),
            principal=self._credentials.root,
            account=self._account,
            region=self._region,
            now=self._engine.clock(),
            request_id=ids.request_id(),
            origin=Origin(address="127.0.0.1", secure=True),
        )
        findings = preflight(call, params, [str(each) for each in question.get("services") or ()], facts)
        return {
            "ok": all(each.ok for each in findings),
            "findings": [dataclasses.asdict(each) for each in findings],
        }


def _flow(interface: NetworkInterface, question: dict[str, Any]) -> Flow:
    target = str(question.get("to", ""))
    address, _, port = target.partition(":")
    known = address.startswith("eni-") or is_address(address)
    if not known or (port and not (port.isdigit() and int(port) < 65536)):
        raise BadQuestion(
            f"{target!r} is no ADDRESS[:PORT] and no INTERFACE[:PORT]. A name is resolved with "
            "--request, as in 'GET https://NAME:PORT/'."
        )
    protocol = str(question.get("protocol") or "tcp")
    if protocol not in _PROTOCOLS and not (protocol.isdigit() and int(protocol) < 256):
        raise BadQuestion(f"{protocol!r} is no protocol: {', '.join(_PROTOCOLS)} or a number up to 255.")
    return Flow(
        source=interface.interface_id,
        destination=address,
        protocol=protocol,
        port=int(port) if port else None,
        vpc_id=interface.vpc_id,
    )


def _answer(answer: Answer) -> dict[str, Any]:
    return {
        "what": answer.what,
        "allowed": answer.verdict.allowed,
        "steps": [dataclasses.asdict(step) for step in answer.verdict.steps],
    }


def _answering(function: Callable[[dict[str, Any]], Any]) -> Any:
    async def handle(request: web.Request) -> web.Response:
        try:
            answer = function(await request.json())
            return web.json_response(await answer if inspect.isawaitable(answer) else answer)
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)

    return handle
