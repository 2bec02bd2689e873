"""A random walk of calls that change something, and what is known of the outcome of each.

A `Step` is one call on one thing. While nobody is killed its answer tells what is there. When the daemon was
killed under it, the thing is as before or as after, never between; and the same call done again makes it so
once, as clients that lost an answer do.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import boto3
import botocore.exceptions
from botocore.config import Config

#: what a client sees of a daemon that is gone
LOST = (
    botocore.exceptions.ConnectionError,
    botocore.exceptions.HTTPClientError,
    botocore.exceptions.ResponseStreamingError,
    # an answer that was cut: its status is there and its text is not
    botocore.parsers.ResponseParserError,
)
SERVICES = ("ec2", "iam", "logs", "s3", "route53resolver", "sagemaker")
TRUST = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}
    ],
}


@dataclass(slots=True, kw_only=True)
class Step:
    """`look` tells what is there of `thing`, in a form to be compared; `after` is that when `act` was done."""

    thing: str
    what: str
    act: Callable[[], Any]
    look: Callable[[], Any]
    after: Any


def _lost(act: Callable[[], Any]) -> str:
    """How the answer to this call was lost; "" when it came."""
    try:
        act()
    except LOST as error:
        return type(error).__name__
    return ""


@dataclass(slots=True)
class Walk:
    """`dice` decides what is done. `known`: what every thing must be, by what was acknowledged."""

    environment: dict[str, str]
    dice: random.Random
    on: dict[str, Any] = field(default_factory=dict)  # clients that try once
    sure: dict[str, Any] = field(default_factory=dict)  # clients that try until they are answered
    known: dict[str, tuple[Callable[[], Any], Any]] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    count: int = 0
    vpcs: list[tuple[str, int]] = field(default_factory=list)
    subnets: list[tuple[str, str]] = field(default_factory=list)
    blocks: int = 0
    role: str = ""  # of the jobs

    def __post_init__(self) -> None:
        session = boto3.Session(
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
            region_name=self.environment["AWS_REGION"],
        )
        once = Config(retries={"total_max_attempts": 1}, connect_timeout=10, read_timeout=120)
        often = Config(retries={"total_max_attempts": 12, "mode": "standard"}, read_timeout=120)
        for name in SERVICES:
            for clients, how in ((self.on, once), (self.sure, often)):
                clients[name] = session.client(
                    name,
                    endpoint_url=self.environment["AWS_ENDPOINT_URL"],
                    verify=self.environment["AWS_CA_BUNDLE"],
                    config=how,
                )
        made = self.on["iam"].create_role(RoleName="jobs", AssumeRolePolicyDocument=json.dumps(TRUST))
        self.role = made["Role"]["Arn"]

    def fresh(self) -> str:
        self.count += 1
        return f"w{self.count}"

    def take(self, step: Step, *, killed: Callable[[], bool]) -> None:
        """Do this step. `killed()` waits for the daemon and tells whether it had been killed meanwhile."""
        before = self.known.get(step.thing, (None, None))[1]
        self.done.append(f"{step.what} {step.thing}")
        lost = _lost(step.act)
        if lost:
            self.done[-1] += f" lost: {lost}"
            assert killed(), (self.done[-5:], "the answer was lost, and nobody had killed the daemon")
            found = step.look()
            assert found in (before, step.after), (self.done[-5:], found, before, step.after)
            if found == before or "token" in step.what:
                step.act()
                found = step.look()
            assert found == step.after, (self.done[-5:], found, step.after)
        self.known[step.thing] = (step.look, step.after)

    def check(self) -> None:
        """Every thing is what was acknowledged."""
        for thing, (look, value) in self.known.items():
            found = look()
            assert found == value, (thing, found, value, [one for one in self.done if one.endswith(thing)])

    # -- steps -----------------------------------------------------------------------------------------

    def steps(self) -> Iterator[Step]:
        """Without end. Each is made when it is asked for: what was done before is done."""
        kinds = (
            *(self._vpc, self._subnet, self._group, self._table, self._endpoint, self._interface),
            *(self._prefix_list, self._address, self._acl, self._tags, self._role, self._log, self._bucket),
            *(self._bucket, self._log, self._resolver_rule, self._job, self._gateway),
        )
        yield from self._vpc()
        yield from self._subnet()
        while True:
            yield from self.dice.choice(kinds)()

    def _tag(self, kind: str, name: str) -> list[dict[str, Any]]:
        return [{"ResourceType": kind, "Tags": [{"Key": "walk", "Value": name}]}]

    def _ec2(self, operation: str, member: str, shape: Callable[[Any], Any], name: str) -> Callable[[], Any]:
        """Looks up what has this tag; None when nothing has."""

        def look() -> Any:
            call = getattr(self.sure["ec2"], operation)
            found = call(Filters=[{"Name": "tag:walk", "Values": [name]}])[member]
            assert len(found) <= 1, f"{name} is there {len(found)} times"
            return shape(found[0]) if found else None

        return look

    def _one(self, operation: str, member: str, name: str) -> Any:
        (found,) = getattr(self.sure["ec2"], operation)(Filters=[{"Name": "tag:walk", "Values": [name]}])[
            member
        ]
        return found

    def _vpc(self) -> Iterator[Step]:
        self.blocks += 1
        number, name, ec2, sure = self.blocks, self.fresh(), self.on["ec2"], self.sure["ec2"]
        cidr = f"10.{number}.0.0/16"

        def shape(vpc: Any) -> Any:
            own = [{"Name": "vpc-id", "Values": [vpc["VpcId"]]}]
            return [
                [one["CidrBlock"] for one in vpc["CidrBlockAssociationSet"]],
                [one["GroupName"] for one in sure.describe_security_groups(Filters=own)["SecurityGroups"]][
                    :1
                ],
                len(sure.describe_network_acls(Filters=own)["NetworkAcls"]) >= 1,
                len(sure.describe_route_tables(Filters=own)["RouteTables"]) >= 1,
            ]

        look = self._ec2("describe_vpcs", "Vpcs", shape, name)
        made = [[cidr], ["default"], True, True]
        yield Step(
            thing=name,
            what="CreateVpc",
            act=lambda: ec2.create_vpc(CidrBlock=cidr, TagSpecifications=self._tag("vpc", name)),
            look=look,
            after=made,
        )
        vpc_id = self._one("describe_vpcs", "Vpcs", name)["VpcId"]
        if self.dice.random() < 0.3 and self.vpcs:
            yield Step(
                thing=name,
                what="DeleteVpc",
                act=lambda: ec2.delete_vpc(VpcId=vpc_id),
                look=look,
                after=None,
            )
            return
        self.vpcs.append((vpc_id, number))
        if self.dice.random() < 0.3:
            more = f"10.{number + 100}.0.0/16"
            yield Step(
                thing=name,
                what="AssociateVpcCidrBlock",
                act=lambda: ec2.associate_vpc_cidr_block(VpcId=vpc_id, CidrBlock=more),
                look=look,
                after=[[cidr, more], *made[1:]],
            )

    def _subnet(self) -> Iterator[Step]:
        name, ec2 = self.fresh(), self.on["ec2"]
        vpc_id, number = self.dice.choice(self.vpcs)
        cidr = f"10.{number}.{self.count % 256}.0/24"
        zone = self.environment["AWS_REGION"] + self.dice.choice("abc")
        look = self._ec2("describe_subnets", "Subnets", lambda s: [s["CidrBlock"], s["VpcId"]], name)
        if any(value == [cidr, vpc_id] for _, value in self.known.values()):
            return
        yield Step(
            thing=name,
            what="CreateSubnet",
            act=lambda: ec2.create_subnet(
                VpcId=vpc_id,
                CidrBlock=cidr,
                AvailabilityZone=zone,
                TagSpecifications=self._tag("subnet", name),
            ),
            look=look,
            after=[cidr, vpc_id],
        )
        self.subnets.append((self._one("describe_subnets", "Subnets", name)["SubnetId"], vpc_id))

    def _group(self) -> Iterator[Step]:
        name, ec2 = self.fresh(), self.on["ec2"]
        vpc_id, _ = self.dice.choice(self.vpcs)

        def shape(group: Any) -> Any:
            return [
                sorted((p.get("FromPort", -1), r["CidrIp"]) for p in group[which] for r in p["IpRanges"])
                for which in ("IpPermissions", "IpPermissionsEgress")
            ]

        look = self._ec2("describe_security_groups", "SecurityGroups", shape, name)
        everywhere = [(-1, "0.0.0.0/0")]
        yield Step(
            thing=name,
            what="CreateSecurityGroup",
            act=lambda: ec2.create_security_group(
                GroupName=name,
                Description=name,
                VpcId=vpc_id,
                TagSpecifications=self._tag("security-group", name),
            ),
            look=look,
            after=[[], everywhere],
        )
        group_id = self._one("describe_security_groups", "SecurityGroups", name)["GroupId"]
        ports = self.dice.sample(range(1000), 12)
        rules = [
            {
                "IpProtocol": "tcp",
                "FromPort": p,
                "ToPort": p,
                "IpRanges": [{"CidrIp": f"10.0.{p % 256}.0/24"}],
            }
            for p in ports
        ]
        yield Step(
            thing=name,
            what="AuthorizeSecurityGroupIngress",
            act=lambda: ec2.authorize_security_group_ingress(GroupId=group_id, IpPermissions=rules),
            look=look,
            after=[sorted((p, f"10.0.{p % 256}.0/24") for p in ports), everywhere],
        )
        if self.dice.random() < 0.5:
            yield Step(
                thing=name,
                what="RevokeSecurityGroupIngress",
                act=lambda: ec2.revoke_security_group_ingress(GroupId=group_id, IpPermissions=rules[:7]),
                look=look,
                after=[sorted((p, f"10.0.{p % 256}.0/24") for p in ports[7:]), everywhere],
            )
        if self.dice.random() < 0.3:
            yield Step(
                thing=name,
                what="DeleteSecurityGroup",
                act=lambda: ec2.delete_security_group(GroupId=group_id),
                look=look,
                after=None,
            )

    def _table(self) -> Iterator[Step]:
        name, ec2 = self.fresh(), self.on["ec2"]
        subnet_id, vpc_id = self.dice.choice(self.subnets)

        def shape(table: Any) -> Any:
            return [
                sorted(r["DestinationCidrBlock"] for r in table["Routes"] if r["GatewayId"] != "local"),
                sorted(a["SubnetId"] for a in table["Associations"]),
            ]

        look = self._ec2("describe_route_tables", "RouteTables", shape, name)
        token = f"{name}-{self.dice.random()}"
        yield Step(
            thing=name,
            what="CreateRouteTable (token)",
            act=lambda: ec2.create_route_table(
                VpcId=vpc_id, ClientToken=token, TagSpecifications=self._tag("route-table", name)
            ),
            look=look,
            after=[[], []],
        )
        table_id = self._one("describe_route_tables", "RouteTables", name)["RouteTableId"]
        taken = [value for _, value in self.known.values() if isinstance(value, list) and len(value) == 2]
        if not any(subnet_id in value[1] for value in taken if isinstance(value[1], list)):
            yield Step(
                thing=name,
                what="AssociateRouteTable",
                act=lambda: ec2.associate_route_table(RouteTableId=table_id, SubnetId=subnet_id),
                look=look,
                after=[[], [subnet_id]],
            )
        elif self.dice.random() < 0.5:
            yield Step(
                thing=name,
                what="DeleteRouteTable",
                act=lambda: ec2.delete_route_table(RouteTableId=table_id),
                look=look,
                after=None,
            )

    def _endpoint(self) -> Iterator[Step]:
        name, ec2 = self.fresh(), self.on["ec2"]
        vpc_id, _ = self.dice.choice(self.vpcs)
        region = self.environment["AWS_REGION"]
        table = self.sure["ec2"].create_route_table(VpcId=vpc_id)["RouteTable"]["RouteTableId"]

        def shape(endpoint: Any) -> Any:
            (found,) = self.sure["ec2"].describe_route_tables(RouteTableIds=[table])["RouteTables"]
            routes = [r for r in found["Routes"] if r.get("GatewayId") == endpoint["VpcEndpointId"]]
            return [endpoint["RouteTableIds"], len(routes)]

        look = self._ec2("describe_vpc_endpoints", "VpcEndpoints", shape, name)
        token = f"{name}-{self.dice.random()}"
        yield Step(
            thing=name,
            what="CreateVpcEndpoint (token)",
            act=lambda: ec2.create_vpc_endpoint(
                VpcId=vpc_id,
                ServiceName=f"com.amazonaws.{region}.s3",
                RouteTableIds=[table],
                ClientToken=token,
                TagSpecifications=self._tag("vpc-endpoint", name),
            ),
            look=look,
            after=[[table], 1],
        )
        endpoint_id = self._one("describe_vpc_endpoints", "VpcEndpoints", name)["VpcEndpointId"]
        if self.dice.random() < 0.5:
            yield Step(
                thing=name,
                what="DeleteVpcEndpoints",
                act=lambda: ec2.delete_vpc_endpoints(VpcEndpointIds=[endpoint_id]),
                look=look,
                after=None,
            )

    def _interface(self) -> Iterator[Step]:
        name, ec2 = self.fresh(), self.on["ec2"]
        subnet_id, _ = self.dice.choice(self.subnets)

        def shape(interface: Any) -> Any:
            return [interface["SubnetId"], len(interface["PrivateIpAddresses"])]

        look = self._ec2("describe_network_interfaces", "NetworkInterfaces", shape, name)
        token = f"{name}-{self.dice.random()}"
        yield Step(
            thing=name,
            what="CreateNetworkInterface (token)",
            act=lambda: ec2.create_network_interface(
                SubnetId=subnet_id,
                ClientToken=token,
                TagSpecifications=self._tag("network-interface", name),
            ),
            look=look,
            after=[subnet_id, 1],
        )
        found = self._one("describe_network_interfaces", "NetworkInterfaces", name)["NetworkInterfaceId"]
        if self.dice.random() < 0.5:
            yield Step(
                thing=name,
                what="DeleteNetworkInterface",
                act=lambda: ec2.delete_network_interface(NetworkInterfaceId=found),
                look=look,
                after=None,
            )

    def _prefix_list(self) -> Iterator[Step]:
        name, ec2, sure = self.fresh(), self.on["ec2"], self.sure["ec2"]

        def look() -> Any:
            found = sure.describe_managed_prefix_lists(
                Filters=[{"Name": "prefix-list-name", "Values": [name]}]
            )["PrefixLists"]
            assert len(found) <= 1
            if not found:
                return None
            entries = sure.get_managed_prefix_list_entries(PrefixListId=found[0]["PrefixListId"])["Entries"]
            return sorted(entry["Cidr"] for entry in entries)

        cidrs = [f"172.16.{n}.0/24" for n in range(8)]
        token = f"{name}-{self.dice.random()}"
        yield Step(
            thing=name,
            what="CreateManagedPrefixList (token)",
            act=lambda: ec2.create_managed_prefix_list(
                PrefixListName=name,
                AddressFamily="IPv4",
                MaxEntries=20,
                ClientToken=token,
                Entries=[{"Cidr": cidr} for cidr in cidrs],
            ),
            look=look,
            after=cidrs,
        )
        found = sure.describe_managed_prefix_lists(Filters=[{"Name": "prefix-list-name", "Values": [name]}])
        list_id = found["PrefixLists"][0]["PrefixListId"]
        yield Step(
            thing=name,
            what="ModifyManagedPrefixList",
            act=lambda: ec2.modify_managed_prefix_list(
                PrefixListId=list_id,
                CurrentVersion=1,
                AddEntries=[{"Cidr": "192.168.7.0/24"}],
                RemoveEntries=[{"Cidr": cidr} for cidr in cidrs[:4]],
            ),
            look=look,
            after=[*cidrs[4:], "192.168.7.0/24"],
        )

    def _address(self) -> Iterator[Step]:
        name, ec2 = self.fresh(), self.on["ec2"]
        look = self._ec2("describe_addresses", "Addresses", lambda a: a["Domain"], name)
        yield Step(
            thing=name,
            what="AllocateAddress",
            act=lambda: ec2.allocate_address(TagSpecifications=self._tag("elastic-ip", name)),
            look=look,
            after="vpc",
        )
        allocation = self._one("describe_addresses", "Addresses", name)["AllocationId"]
        yield Step(
            thing=name,
            what="ReleaseAddress",
            act=lambda: ec2.release_address(AllocationId=allocation),
            look=look,
            after=None,
        )

    def _gateway(self) -> Iterator[Step]:
        name, ec2 = self.fresh(), self.on["ec2"]
        vpc_id, _ = self.dice.choice(self.vpcs)

        def shape(gateway: Any) -> Any:
            return [one["VpcId"] for one in gateway["Attachments"]]

        look = self._ec2("describe_internet_gateways", "InternetGateways", shape, name)
        yield Step(
            thing=name,
            what="CreateInternetGateway",
            act=lambda: ec2.create_internet_gateway(TagSpecifications=self._tag("internet-gateway", name)),
            look=look,
            after=[],
        )
        gateway = self._one("describe_internet_gateways", "InternetGateways", name)["InternetGatewayId"]
        for what, act, after in (
            ("AttachInternetGateway", ec2.attach_internet_gateway, [vpc_id]),
            ("DetachInternetGateway", ec2.detach_internet_gateway, []),
        ):
            yield Step(
                thing=name,
                what=what,
                act=lambda act=act: act(InternetGatewayId=gateway, VpcId=vpc_id),
                look=look,
                after=after,
            )

    def _acl(self) -> Iterator[Step]:
        name, ec2 = self.fresh(), self.on["ec2"]
        vpc_id, _ = self.dice.choice(self.vpcs)

        def shape(acl: Any) -> Any:
            return sorted(one["RuleNumber"] for one in acl["Entries"] if one["RuleNumber"] < 32767)

        look = self._ec2("describe_network_acls", "NetworkAcls", shape, name)
        token = f"{name}-{self.dice.random()}"
        yield Step(
            thing=name,
            what="CreateNetworkAcl (token)",
            act=lambda: ec2.create_network_acl(
                VpcId=vpc_id, ClientToken=token, TagSpecifications=self._tag("network-acl", name)
            ),
            look=look,
            after=[],
        )
        acl_id = self._one("describe_network_acls", "NetworkAcls", name)["NetworkAclId"]
        yield Step(
            thing=name,
            what="CreateNetworkAclEntry",
            act=lambda: ec2.create_network_acl_entry(
                NetworkAclId=acl_id,
                RuleNumber=7,
                Protocol="-1",
                RuleAction="deny",
                Egress=False,
                CidrBlock="10.0.0.0/8",
            ),
            look=look,
            after=[7],
        )

    def _tags(self) -> Iterator[Step]:
        name, ec2, sure = self.fresh(), self.on["ec2"], self.sure["ec2"]
        resources = [self.dice.choice(self.vpcs)[0], self.dice.choice(self.subnets)[0]]

        def look() -> Any:
            found = sure.describe_tags(Filters=[{"Name": "key", "Values": [f"key-{name}"]}])["Tags"]
            return sorted(one["ResourceId"] for one in found)

        tags = [{"Key": f"key-{name}", "Value": "x"}]
        self.known[name] = (look, [])
        yield Step(
            thing=name,
            what="CreateTags",
            act=lambda: ec2.create_tags(Resources=resources, Tags=tags),
            look=look,
            after=sorted(resources),
        )
        if self.dice.random() < 0.5:
            yield Step(
                thing=name,
                what="DeleteTags",
                act=lambda: ec2.delete_tags(Resources=resources, Tags=tags),
                look=look,
                after=[],
            )

    def _role(self) -> Iterator[Step]:
        name, iam, sure = self.fresh(), self.on["iam"], self.sure["iam"]

        def look() -> Any:
            try:
                role = sure.get_role(RoleName=name)["Role"]
            except sure.exceptions.NoSuchEntityException:
                return None
            return [
                sorted(t["Key"] for t in role.get("Tags", ())),
                sure.list_role_policies(RoleName=name)["PolicyNames"],
            ]

        policy = {
            "Version": "2012-10-17",
            "Statement": {"Effect": "Allow", "Action": "s3:*", "Resource": "*"},
        }
        yield Step(
            thing=name,
            what="CreateRole",
            act=lambda: iam.create_role(
                RoleName=name,
                AssumeRolePolicyDocument=json.dumps(TRUST),
                Tags=[{"Key": "a", "Value": "b"}, {"Key": "c", "Value": "d"}],
            ),
            look=look,
            after=[["a", "c"], []],
        )
        yield Step(
            thing=name,
            what="PutRolePolicy",
            act=lambda: iam.put_role_policy(RoleName=name, PolicyName="p", PolicyDocument=json.dumps(policy)),
            look=look,
            after=[["a", "c"], ["p"]],
        )
        if self.dice.random() < 0.5:
            yield Step(
                thing=name,
                what="DeleteRolePolicy",
                act=lambda: iam.delete_role_policy(RoleName=name, PolicyName="p"),
                look=look,
                after=[["a", "c"], []],
            )
            yield Step(
                thing=name,
                what="DeleteRole",
                act=lambda: iam.delete_role(RoleName=name),
                look=look,
                after=None,
            )

    def _log(self) -> Iterator[Step]:
        name, logs, sure = self.fresh(), self.on["logs"], self.sure["logs"]

        def look() -> Any:
            found = sure.describe_log_groups(logGroupNamePrefix=f"/{name}/")["logGroups"]
            if not found:
                return None
            streams = sure.describe_log_streams(logGroupName=f"/{name}/g")["logStreams"]
            if not streams:
                return [found[0].get("retentionInDays"), None]
            events = sure.get_log_events(logGroupName=f"/{name}/g", logStreamName="s", startFromHead=True)[
                "events"
            ]
            return [found[0].get("retentionInDays"), sorted({event["message"] for event in events})]

        now = int(time.time() * 1000)
        lines = [{"timestamp": now, "message": f"{name} {n}"} for n in range(50)]
        told = sorted(line["message"] for line in lines)
        where = {"logGroupName": f"/{name}/g"}
        yield Step(
            thing=name, what="CreateLogGroup", act=lambda: logs.create_log_group(**where), look=look,
            after=[None, None],
        )  # fmt: skip
        yield Step(
            thing=name,
            what="CreateLogStream",
            act=lambda: logs.create_log_stream(**where, logStreamName="s"),
            look=look,
            after=[None, []],
        )
        yield Step(
            thing=name,
            what="PutLogEvents",
            act=lambda: logs.put_log_events(**where, logStreamName="s", logEvents=lines),
            look=look,
            after=[None, told],
        )
        yield Step(
            thing=name,
            what="PutRetentionPolicy",
            act=lambda: logs.put_retention_policy(**where, retentionInDays=7),
            look=look,
            after=[7, told],
        )
        if self.dice.random() < 0.5:
            yield Step(
                thing=name, what="DeleteLogGroup", act=lambda: logs.delete_log_group(**where), look=look,
                after=None,
            )  # fmt: skip

    def _bucket(self) -> Iterator[Step]:
        name, s3, sure = f"walk-{self.fresh()}-{self.dice.randrange(10**9)}", self.on["s3"], self.sure["s3"]

        def look() -> Any:
            listed = name in [one["Name"] for one in sure.list_buckets()["Buckets"]]
            try:
                found = sure.list_objects_v2(Bucket=name).get("Contents", ())
            except sure.exceptions.NoSuchBucket:
                assert not listed, f"{name} is listed and is not there"
                return None
            assert listed, f"{name} is there and not listed"
            try:
                tags = [one["Key"] for one in sure.get_bucket_tagging(Bucket=name)["TagSet"]]
            except botocore.exceptions.ClientError:
                tags = []
            return [sorted((one["Key"], one["Size"]) for one in found), tags]

        body, parts = b"x" * self.dice.choice((1, 5000, 300_000)), b"y" * (5 << 20)
        objects = [("key", len(body))]
        yield Step(
            thing=name, what="CreateBucket", act=lambda: s3.create_bucket(Bucket=name), look=look, after=[[], []]
        )  # fmt: skip
        yield Step(
            thing=name,
            what="PutObject",
            act=lambda: s3.put_object(Bucket=name, Key="key", Body=body),
            look=look,
            after=[objects, []],
        )
        tags = {"TagSet": [{"Key": "k", "Value": "v"}]}
        yield Step(
            thing=name,
            what="PutBucketTagging",
            act=lambda: s3.put_bucket_tagging(Bucket=name, Tagging=tags),
            look=look,
            after=[objects, ["k"]],
        )
        if self.dice.random() < 0.3:
            upload = sure.create_multipart_upload(Bucket=name, Key="parts")["UploadId"]
            etags = [
                {
                    "PartNumber": n,
                    "ETag": sure.upload_part(
                        Bucket=name, Key="parts", UploadId=upload, PartNumber=n, Body=parts
                    )["ETag"],
                }
                for n in (1, 2)
            ]
            yield Step(
                thing=name,
                what="CompleteMultipartUpload",
                act=lambda: s3.complete_multipart_upload(
                    Bucket=name, Key="parts", UploadId=upload, MultipartUpload={"Parts": etags}
                ),
                look=look,
                after=[[*objects, ("parts", 2 * len(parts))], ["k"]],
            )
            sure.delete_object(Bucket=name, Key="parts")
        yield Step(
            thing=name,
            what="DeleteObject",
            act=lambda: s3.delete_object(Bucket=name, Key="key"),
            look=look,
            after=[[], ["k"]],
        )
        yield Step(
            thing=name, what="DeleteBucket", act=lambda: s3.delete_bucket(Bucket=name), look=look, after=None
        )  # fmt: skip
        yield Step(
            thing=name, what="CreateBucket", act=lambda: s3.create_bucket(Bucket=name), look=look, after=[[], []]
        )  # fmt: skip
        yield Step(
            thing=name,
            what="PutObject",
            act=lambda: s3.put_object(Bucket=name, Key="key", Body=body),
            look=look,
            after=[objects, []],
        )

    def _resolver_rule(self) -> Iterator[Step]:
        name, resolver, sure = self.fresh(), self.on["route53resolver"], self.sure["route53resolver"]

        def look() -> Any:
            found = [one for one in sure.list_resolver_rules()["ResolverRules"] if one.get("Name") == name]
            assert len(found) <= 1
            return found[0]["DomainName"] if found else None

        yield Step(
            thing=name,
            what="CreateResolverRule (token)",
            act=lambda: resolver.create_resolver_rule(
                CreatorRequestId=name, Name=name, RuleType="SYSTEM", DomainName=f"{name}.example"
            ),
            look=look,
            after=f"{name}.example.",
        )
        (rule,) = [one for one in sure.list_resolver_rules()["ResolverRules"] if one.get("Name") == name]
        yield Step(
            thing=name,
            what="DeleteResolverRule",
            act=lambda: resolver.delete_resolver_rule(ResolverRuleId=rule["Id"]),
            look=look,
            after=None,
        )

    def _job(self) -> Iterator[Step]:
        name, sagemaker, sure = self.fresh(), self.on["sagemaker"], self.sure["sagemaker"]
        role_arn = self.role

        def look() -> Any:
            found = sure.list_processing_jobs(NameContains=f"{name}-job")["ProcessingJobSummaries"]
            if not found:
                return None
            job = sure.describe_processing_job(ProcessingJobName=f"{name}-job")
            return sorted(one["Key"] for one in sure.list_tags(ResourceArn=job["ProcessingJobArn"])["Tags"])

        yield Step(
            thing=name,
            what="CreateProcessingJob",
            act=lambda: sagemaker.create_processing_job(
                ProcessingJobName=f"{name}-job",
                RoleArn=role_arn,
                AppSpecification={"ImageUri": "cloister/host", "ContainerEntrypoint": ["true"]},
                ProcessingResources={
                    "ClusterConfig": {"InstanceCount": 1, "InstanceType": "ml.t3.medium", "VolumeSizeInGB": 1}
                },
                Tags=[{"Key": "a", "Value": "b"}],
            ),
            look=look,
            after=["a"],
        )
        arn = sure.describe_processing_job(ProcessingJobName=f"{name}-job")["ProcessingJobArn"]
        yield Step(
            thing=name,
            what="AddTags",
            act=lambda: sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "c", "Value": "d"}]),
            look=look,
            after=["a", "c"],
        )
