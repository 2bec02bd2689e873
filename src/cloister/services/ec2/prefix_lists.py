"""Prefix lists: the customer's, and those of AWS, which are documents made when the account is.

Choice of ours: only the current version of a list is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cloister.ids import resource_id
from cloister.services.api import Call, Params, operation
from cloister.services.ec2.describe import Resource, tag_set
from cloister.services.ec2.idempotency import once
from cloister.services.ec2.parameters import on, only, require
from cloister.services.ec2.security_group_rules import check_limit
from cloister.services.ec2.security_groups import check_text
from cloister.services.ec2.tags import tag_specifications
from cloister.vpc import addresses
from cloister.vpc.model import PrefixList, RouteTable, SecurityGroup
from cloister.wire.errors import AwsError
from cloister.world import World

AWS = "AWS"
#: AWS: entries of one call, and of a list
ENTRIES_PER_CALL, ENTRIES_PER_LIST = 100, 1000


def _managed_shape(call: Call, listed: PrefixList) -> Params:
    owner = "aws" if listed.owner_id == AWS else listed.owner_id
    shape: Params = {
        "PrefixListId": listed.prefix_list_id,
        "AddressFamily": "IPv4",
        "State": "create-complete" if listed.version == 1 else "modify-complete",
        "PrefixListArn": ":".join(
            ("arn", call.partition, "ec2", call.region, owner, f"prefix-list/{listed.prefix_list_id}")
        ),
        "PrefixListName": listed.name,
        "OwnerId": listed.owner_id,
        "Tags": tag_set(listed.tags),
    }
    if listed.owner_id != AWS:
        shape |= {"MaxEntries": listed.max_entries, "Version": listed.version}
    return shape


def _get(world: World, prefix_list_id: str) -> PrefixList | None:
    return world.get(PrefixList, prefix_list_id)


def _get_of_aws(world: World, prefix_list_id: str) -> PrefixList | None:
    found = world.get(PrefixList, prefix_list_id)
    return found if found is not None and found.owner_id == AWS else None


_NOT_FOUND, _MISSING = "InvalidPrefixListID.NotFound", "The prefix list ID '{}' does not exist"

#: DescribeManagedPrefixLists: all lists
LISTS: Resource[PrefixList] = Resource(
    result="PrefixLists",
    ids="PrefixListIds",
    key=lambda listed: listed.prefix_list_id,
    all=lambda world: world.all(PrefixList),
    get=_get,
    shape=_managed_shape,
    prefix="pl",
    not_found=_NOT_FOUND,
    malformed="InvalidPrefixListId.Malformed",
    missing=_MISSING,
    page=(1, 100),
    filters={
        "owner-id": lambda call, listed: listed.owner_id,
        "prefix-list-id": lambda call, listed: listed.prefix_list_id,
        "prefix-list-name": lambda call, listed: listed.name,
    },
)

#: DescribePrefixLists: those of AWS services, in the older shape
SERVICE_LISTS: Resource[PrefixList] = Resource(
    result="PrefixLists",
    ids="PrefixListIds",
    key=lambda listed: listed.prefix_list_id,
    all=lambda world: [listed for listed in world.all(PrefixList) if listed.owner_id == AWS],
    get=_get_of_aws,
    shape=lambda call, listed: {
        "PrefixListId": listed.prefix_list_id,
        "PrefixListName": listed.name,
        "Cidrs": list(listed.entries),
    },
    prefix="pl",
    not_found=_NOT_FOUND,
    malformed="InvalidPrefixListId.Malformed",
    missing=_MISSING,
    page=(5, 1000),
    filters={
        "prefix-list-id": lambda call, listed: listed.prefix_list_id,
        "prefix-list-name": lambda call, listed: listed.name,
    },
)

#: GetManagedPrefixListEntries: (CIDR, description)
ENTRIES: Resource[tuple[str, str]] = Resource(
    result="Entries",
    key=lambda entry: entry[0],
    all=lambda world: (),
    shape=lambda call, entry: {"Cidr": entry[0]} | ({"Description": entry[1]} if entry[1] else {}),
    page=(1, 100),
)


@operation("ec2", "DescribePrefixLists")
def describe_prefix_lists(call: Call, params: Params) -> Params:
    return SERVICE_LISTS.describe(call, params)


@operation("ec2", "DescribeManagedPrefixLists")
def describe_managed_prefix_lists(call: Call, params: Params) -> Params:
    return LISTS.describe(call, params)


@operation("ec2", "GetManagedPrefixListEntries", resources=on(prefix_list="PrefixListId"))
def get_managed_prefix_list_entries(call: Call, params: Params) -> Params:
    listed = LISTS.find(call.tx, params["PrefixListId"])
    version = params.get("TargetVersion", listed.version)
    if version > listed.version or version < 1:
        raise AwsError(
            "InvalidPrefixListVersion.NotFound",
            f"The prefix list '{listed.prefix_list_id}' has no version {version}",
        )
    if version != listed.version:
        raise AwsError(
            "UnsupportedOperation",
            f"TargetVersion {version} is not supported: Cloister does not implement older versions, "
            f"the current one is {listed.version}.",
        )
    return ENTRIES.describe(call, params, among=listed.entries.items())


@operation("ec2", "CreateManagedPrefixList", resources=on(prefix_list="*"))
def create_managed_prefix_list(call: Call, params: Params) -> Params:
    only(
        params, "PrefixListName", "Entries", "MaxEntries", "AddressFamily", "TagSpecifications", "ClientToken"
    )
    listed = once(
        call, "CreateManagedPrefixList", params, LISTS, lambda: _make_list(call, params), longest=255
    )
    return {"PrefixList": _managed_shape(call, listed) | {"State": "create-in-progress"}}


def _make_list(call: Call, params: Params) -> PrefixList:
    if params["AddressFamily"] == "IPv6":
        raise AwsError(
            "UnsupportedOperation", "AddressFamily 'IPv6' is not supported: Cloister does not implement IPv6."
        )
    if params["AddressFamily"] != "IPv4":
        raise AwsError(
            "InvalidParameterValue",
            f"Value ({params['AddressFamily']}) for parameter addressFamily is invalid. Use IPv4.",
        )
    entries = _entries(params.get("Entries", ()))
    listed = PrefixList(
        prefix_list_id=resource_id("pl"),
        name=_name(params["PrefixListName"]),
        owner_id=call.account,
        entries=entries,
        max_entries=_max_entries(params["MaxEntries"]),
        tags=tag_specifications(params, "prefix-list"),
    )
    _check_size(listed)
    call.tx.put(listed)
    return listed


@operation("ec2", "ModifyManagedPrefixList", resources=on(prefix_list="PrefixListId"))
def modify_managed_prefix_list(call: Call, params: Params) -> Params:
    """A change of entries makes a new version, and must name the current one."""
    only(
        params,
        "PrefixListId",
        "CurrentVersion",
        "PrefixListName",
        "AddEntries",
        "RemoveEntries",
        "MaxEntries",
    )
    listed = _own(call, params["PrefixListId"])
    add, remove = params.get("AddEntries", ()), params.get("RemoveEntries", ())
    if params.get("MaxEntries") and (add or remove):
        raise AwsError(
            "InvalidParameterCombination",
            "The parameter MaxEntries cannot be used with the parameters AddEntries and RemoveEntries",
        )
    if add or remove:
        require(params, "CurrentVersion")
        if params["CurrentVersion"] != listed.version:
            raise AwsError(
                "PrefixListVersionMismatch",
                f"The prefix list '{listed.prefix_list_id}' has the version {listed.version}, "
                f"not {params['CurrentVersion']}.",
            )
        listed = replace(listed, entries=_changed(listed, add, remove), version=listed.version + 1)
    if params.get("PrefixListName"):
        listed = replace(listed, name=_name(params["PrefixListName"]))
    if params.get("MaxEntries"):
        listed = replace(listed, max_entries=_max_entries(params["MaxEntries"]))
    _check_size(listed)
    call.tx.put(listed)
    # AWS: a list counts in every group that names it as its maximum number of entries.
    for group in _groups_with(call.tx, listed):
        check_limit(call, group, egress=False)
        check_limit(call, group, egress=True)
    return {"PrefixList": _managed_shape(call, listed) | {"State": "modify-in-progress"}}


@operation("ec2", "DeleteManagedPrefixList", resources=on(prefix_list="PrefixListId"))
def delete_managed_prefix_list(call: Call, params: Params) -> Params:
    listed = _own(call, params["PrefixListId"])
    routed = any(
        route.destination == listed.prefix_list_id
        for table in call.tx.all(RouteTable)
        for route in table.routes
    )
    if routed or _groups_with(call.tx, listed):
        raise AwsError(
            "DependencyViolation",
            f"The prefix list '{listed.prefix_list_id}' has dependencies and cannot be deleted.",
        )
    call.tx.delete(PrefixList, listed.prefix_list_id)
    return {"PrefixList": _managed_shape(call, listed) | {"State": "delete-in-progress"}}


def _own(call: Call, prefix_list_id: str) -> PrefixList:
    listed = LISTS.find(call.tx, prefix_list_id)
    if listed.owner_id == AWS:
        raise AwsError(
            "OperationNotPermitted",
            f"The prefix list '{prefix_list_id}' is managed by AWS and cannot be changed or deleted.",
        )
    return listed


def _groups_with(world: World, listed: PrefixList) -> list[SecurityGroup]:
    return [
        group
        for group in world.all(SecurityGroup)
        if any(rule.prefix_list_id == listed.prefix_list_id for rule in group.rules)
    ]


def _name(name: str) -> str:
    if not 1 <= len(name) <= 255 or name.lower().startswith("com.amazonaws"):
        raise AwsError(
            "InvalidParameterValue",
            f"Value ({name}) for parameter prefixListName is invalid. "
            "A name has 1 to 255 characters and does not start with com.amazonaws.",
        )
    return name


def _max_entries(count: int) -> int:
    if not 1 <= count <= ENTRIES_PER_LIST:
        raise AwsError(
            "InvalidParameterValue",
            f"Value ({count}) for parameter maxEntries is invalid. "
            f"It must be between 1 and {ENTRIES_PER_LIST}.",
        )
    return count


def _check_size(listed: PrefixList) -> None:
    if listed.max_entries is not None and len(listed.entries) > listed.max_entries:
        raise AwsError(
            "PrefixListMaxEntriesExceeded",
            f"The prefix list '{listed.name}' would have {len(listed.entries)} entries, "
            f"its maximum is {listed.max_entries}.",
        )


def _entries(given: Sequence[Params]) -> dict[str, str]:
    if len(given) > ENTRIES_PER_CALL:
        raise AwsError(
            "InvalidParameterValue",
            f"At most {ENTRIES_PER_CALL} entries can be given in a call, {len(given)} are given.",
        )
    entries: dict[str, str] = {}
    for one in given:
        cidr = str(addresses.parse_cidr(one["Cidr"], "cidr"))
        if cidr in entries:
            raise AwsError("InvalidParameterValue", f"The entry '{cidr}' appears multiple times.")
        check_text(one.get("Description", ""), "description", may_be_empty=True)
        entries[cidr] = one.get("Description", "")
    return entries


def _changed(listed: PrefixList, add: Sequence[Params], remove: Sequence[Params]) -> dict[str, str]:
    """AWS: adding an entry that is there with another description changes the description."""
    added, removed = _entries(add), _entries(remove)
    for cidr in removed:
        if cidr not in listed.entries:
            raise AwsError(
                "InvalidPrefixListModification",
                f"The entry '{cidr}' is not in the prefix list '{listed.prefix_list_id}'.",
            )
        if cidr in added:
            raise AwsError("InvalidPrefixListModification", f"The entry '{cidr}' is both added and removed.")
    for cidr, description in added.items():
        if listed.entries.get(cidr) == description:
            raise AwsError(
                "InvalidPrefixListModification",
                f"The entry '{cidr}' is already in the prefix list '{listed.prefix_list_id}'.",
            )
    return {cidr: text for cidr, text in (listed.entries | added).items() if cidr not in removed}
