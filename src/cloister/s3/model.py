"""What Cloister itself keeps of S3: buckets and their policies. Objects live in the backend."""

from __future__ import annotations

from dataclasses import dataclass, field

from cloister.world import document


@document("bucket", key="name")
@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    name: str
    owner_account: str
    region: str
    created: float
    policy: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    #: BlockPublicAcls, IgnorePublicAcls, BlockPublicPolicy, RestrictPublicBuckets; None: not set
    public_access_block: dict[str, bool] | None = None
    #: documents of settings, as they are given back (`settings.py`)
    settings: dict[str, str] = field(default_factory=dict)

    def blocks(self, setting: str) -> bool:
        return (self.public_access_block or {}).get(setting, False)
