"""What an instance type has: vCPUs and memory. Pure.

AWS (EC2 and SageMaker pricing pages): within a family memory goes with the vCPUs; the exceptions are listed.
The names that there are come from the API's model; a name that this table does not know has no limits.
"""

from __future__ import annotations

from dataclasses import dataclass

_GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceType:
    """`memory` in bytes."""

    vcpus: int
    memory: int


#: family -> GiB for each vCPU
_RATIO = {
    **dict.fromkeys(("c5", "c6i", "c7i", "c8i", "c7i-flex", "c8i-flex"), 2.0),
    **dict.fromkeys(("m4", "m5", "m6i", "m7i", "m8i", "m7i-flex", "m8i-flex"), 4.0),
    **dict.fromkeys(("r5", "r5d", "r6i", "r7i", "r8i", "r8i-flex"), 8.0),
    **dict.fromkeys(("g4dn", "g5", "g6"), 4.0),
    **dict.fromkeys(("g6e", "g7", "g7e"), 8.0),
}
_EXACT = {  # (vCPUs, GiB)
    "t3.medium": (2, 4.0),
    "t3.large": (2, 8.0),
    "t3.xlarge": (4, 16.0),
    "t3.2xlarge": (8, 32.0),
    "c4.xlarge": (4, 7.5),
    "c4.2xlarge": (8, 15.0),
    "c4.4xlarge": (16, 30.0),
    "c4.8xlarge": (36, 60.0),
    "p2.xlarge": (4, 61.0),
    "p2.8xlarge": (32, 488.0),
    "p2.16xlarge": (64, 732.0),
    "p3.2xlarge": (8, 61.0),
    "p3.8xlarge": (32, 244.0),
    "p3.16xlarge": (64, 488.0),
    "p5.4xlarge": (16, 256.0),
    "g5.16xlarge": (64, 256.0),
    "c5.9xlarge": (36, 72.0),
    "c5.18xlarge": (72, 144.0),
}


def instance_type(name: str) -> InstanceType | None:
    """`name` as the API has it, "ml.m5.large"; None: not known."""
    family, _, size = name.removeprefix("ml.").rpartition(".")
    exact = _EXACT.get(f"{family}.{size}")
    if exact is None:
        vcpus = _vcpus(size)
        if vcpus is None or family not in _RATIO:
            return None
        exact = (vcpus, vcpus * _RATIO[family])
    return InstanceType(vcpus=exact[0], memory=int(exact[1] * _GIB))


def _vcpus(size: str) -> int | None:
    if size in ("large", "medium"):
        return 2
    times = size.removesuffix("xlarge")
    if times == size or (times and not times.isdigit()):
        return None
    return 4 * int(times or 1)
