"""STS: who am I, and sessions of roles. AWS: STS API reference, the operations of the same names."""

from __future__ import annotations

import re
from typing import Any

from cloister.authorize import call_keys
from cloister.credentials import Credentials, SessionKeys
from cloister.iam import collect
from cloister.iam.context import resource_tags
from cloister.iam.model import Principal, Role
from cloister.iam.policy import LIMITS, parse, size_of
from cloister.services.api import Call, Params, operation
from cloister.services.iam import common
from cloister.wire.errors import AwsError

#: AWS: "Role chaining limits your session to a maximum of one hour"
CHAINED_MAXIMUM = 3600
#: of the policies and tags together, as AWS packs them, in characters
PACKED_LIMIT = LIMITS["session"] + 512
_ROLE_ARN = re.compile(r"arn:aws[a-z-]*:iam::(\d{12}):role(/(?:[\x21-\x7e]+/)?)([\w+=,.@-]{1,64})", re.ASCII)


def _shown_keys(keys: SessionKeys) -> dict[str, Any]:
    return {
        "AccessKeyId": keys.access_key_id,
        "SecretAccessKey": keys.secret_access_key,
        "SessionToken": keys.token,
        "Expiration": keys.expiration,
    }


def _credentials(call: Call) -> Credentials:
    credentials = call.deps["credentials"]
    assert isinstance(credentials, Credentials)
    return credentials


# "No permissions are required to perform this operation."
@operation("sts", "GetCallerIdentity", action=None)
def get_caller_identity(call: Call, params: Params) -> Params:
    caller = call.principal
    return {"UserId": caller.user_id, "Account": caller.account, "Arn": caller.arn}


@operation("sts", "GetAccessKeyInfo")
def get_access_key_info(call: Call, params: Params) -> Params:
    key = params["AccessKeyId"]
    # A session key carries no trace of its account outside of its token: every ASIA key here is ours.
    if key != _credentials(call).root_access_key_id and not re.fullmatch(r"ASIA[A-Z2-7]{16}", key):
        raise AwsError("ValidationError", f"The access key ID is not valid: {key}")
    return {"Account": call.account}


# "No permissions are required"; only long-term keys may call it.
@operation("sts", "GetSessionToken", action=None)
def get_session_token(call: Call, params: Params) -> Params:
    if call.principal.expires is not None:
        raise AwsError("AccessDenied", "Cannot call GetSessionToken with session credentials", 403)
    _no_mfa(params)
    # "Sessions obtained using AWS account root user credentials are restricted to a maximum of one hour."
    seconds = min(params.get("DurationSeconds", 3600), 3600)
    return {"Credentials": _shown_keys(_credentials(call).issue_root_session(seconds, call.now))}


# Authorised in the handler: the trust policy has its say, and the caller's own policies only where it
# hands the question to the caller's account.
@operation("sts", "AssumeRole", action=None, resources=lambda call, params: [params["RoleArn"]])
def assume_role(call: Call, params: Params) -> Params:
    arn, session = params["RoleArn"], params["RoleSessionName"]
    _no_mfa(params)
    for member in ("ProvidedContexts", "SourceIdentity", "TransitiveTagKeys"):
        if params.get(member):
            raise AwsError("ValidationError", f"Cloister does not implement {member} in AssumeRole.")
    match = _ROLE_ARN.fullmatch(arn)
    if match is None:
        raise AwsError("ValidationError", f"{arn} is invalid")
    if not re.fullmatch(r"[\w+=,.@-]{2,64}", session, re.ASCII):
        raise AwsError("ValidationError", f"The role session name is not valid: {session}")
    account, path, name = match.groups()
    role = call.tx.get(Role, name) if account == call.account else None
    if role is None or role.path != path:
        raise _refused(call.principal, arn)  # not told from a role that may not be assumed
    tags = common.tags_of(params.get("Tags", []))
    _authorize(call, role, params, tags)

    seconds = params.get("DurationSeconds", 3600)
    if seconds < 900:
        raise AwsError("ValidationError", f"DurationSeconds must be at least 900: {seconds}")
    if seconds > role.max_session_seconds:
        raise AwsError(
            "ValidationError",
            "The requested DurationSeconds exceeds the MaxSessionDuration set for this role "
            f"({seconds} > {role.max_session_seconds}).",
        )
    chained = call.principal.role_name is not None
    if chained and seconds > CHAINED_MAXIMUM:
        raise AwsError(
            "ValidationError",
            "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role "
            f"chaining: {seconds}",
        )
    policies = _session_policies(call, params)
    packed = sum(map(size_of, policies)) + sum(len(k) + len(v) for k, v in tags.items())
    if packed > PACKED_LIMIT:
        raise AwsError(
            "PackedPolicyTooLarge",
            f"Packed policy consumes {packed * 100 // PACKED_LIMIT}% of allotted space, please use smaller "
            "policy.",
        )
    keys = _credentials(call).issue(role, session, seconds, policies, tags, call.now)
    result: dict[str, Any] = {
        "Credentials": _shown_keys(keys),
        "AssumedRoleUser": {"AssumedRoleId": keys.principal.user_id, "Arn": keys.principal.arn},
    }
    if policies or tags:
        result["PackedPolicySize"] = packed * 100 // PACKED_LIMIT
    return result


def _no_mfa(params: Params) -> None:
    if "SerialNumber" in params or "TokenCode" in params:
        raise AwsError("AccessDenied", "MultiFactorAuthentication failed: Cloister has no MFA devices.", 403)


def _refused(caller: Principal, arn: str) -> AwsError:
    what = f"User: {caller.arn} is not authorized to perform: sts:AssumeRole on resource: {arn}"
    return AwsError("AccessDenied", what, 403)


def _authorize(call: Call, role: Role, params: Params, tags: dict[str, str]) -> None:
    """sts:AssumeRole, and sts:TagSession where the request brings tags."""
    context = call_keys(call)
    context["sts:RoleSessionName"] = params["RoleSessionName"]
    context |= resource_tags("iam", role.tags)
    context |= common.tag_context(call, params)
    if "ExternalId" in params:
        context["sts:ExternalId"] = params["ExternalId"]
    for action in ("sts:AssumeRole", "sts:TagSession") if tags else ("sts:AssumeRole",):
        decision = collect.may_assume(
            call.tx, role, call.principal, context, account=call.account, action=action
        )
        if not decision.allowed:
            raise AwsError("AccessDenied", decision.sentence(), 403)


def _session_policies(call: Call, params: Params) -> list[str]:
    """The inline document, and the managed policies by their ARNs."""
    texts: list[str] = []
    if "Policy" in params:
        parse(params["Policy"], "session")
        texts.append(params["Policy"])
    for given in params.get("PolicyArns", []):
        texts.append(common.find_policy(call, given["arn"]).arn)
    return texts
