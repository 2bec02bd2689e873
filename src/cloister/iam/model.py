"""Who asks, and the documents IAM stores."""

from __future__ import annotations

from dataclasses import dataclass, field

from cloister.world import document


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """An authenticated caller.

    `arn` is what GetCallerIdentity shows: arn:aws:iam::ACCOUNT:root, or
    arn:aws:sts::ACCOUNT:assumed-role/ROLE/SESSION. `role_name` is set for sessions."""

    arn: str
    account: str
    user_id: str
    access_key_id: str
    role_name: str | None = None
    session_name: str | None = None
    session_policies: tuple[str, ...] = ()  # passed to AssumeRole: documents, and managed policies' ARNs
    session_tags: dict[str, str] = field(default_factory=dict)
    issued: float = 0.0
    expires: float | None = None
    #: of a session: the role's ARN with its path, what aws:PrincipalArn shows
    role_arn: str | None = None

    @property
    def is_root(self) -> bool:
        return self.role_name is None and self.arn.endswith(":root")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePrincipal:
    """An AWS service that acts by itself: "sagemaker.amazonaws.com"."""

    service: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FederatedPrincipal:
    """A user of an identity provider: the provider's ARN or name, "cognito-identity.amazonaws.com"."""

    provider: str


#: whoever may ask; None is an anonymous caller
Caller = Principal | ServicePrincipal | FederatedPrincipal | None


@document("role", key="name")
@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    name: str
    role_id: str
    path: str = "/"
    trust_policy: str
    description: str = ""
    max_session_seconds: int = 3600
    boundary_arn: str | None = None
    inline_policies: dict[str, str] = field(default_factory=dict)  # name -> document
    attached_policies: tuple[str, ...] = ()  # ARNs
    created: float
    last_used: float | None = None
    tags: dict[str, str] = field(default_factory=dict)


@document("policy", key="arn")
@dataclass(frozen=True, slots=True, kw_only=True)
class ManagedPolicy:
    """A customer-managed (or AWS-managed, `aws_managed`) policy with its versions."""

    arn: str
    name: str
    policy_id: str
    path: str = "/"
    description: str = ""
    versions: dict[str, str] = field(default_factory=dict)  # "v1" -> document
    version_created: dict[str, float] = field(default_factory=dict)
    default_version: str = "v1"
    created: float
    updated: float
    aws_managed: bool = False
    tags: dict[str, str] = field(default_factory=dict)
