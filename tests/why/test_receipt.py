"""Receipts: signed as a whole, and checked by anybody who has the file."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from tests.jobs.worlds import documents, request, s3_input

from cloister.jobs.allocation import allocate
from cloister.jobs.model import Instance, ProcessingJob
from cloister.vpc.model import NetworkInterface
from cloister.why.receipt import NotGenuine, network_of, receipt, sign, verify
from cloister.world import World

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)


def _job(**more: Any) -> ProcessingJob:
    given = request(instances=2)
    given["ProcessingInputs"] = [s3_input()]
    return ProcessingJob(
        name="job",
        job_id="1",
        arn="arn:aws:sagemaker:us-east-1:123456789012:processing-job/job",
        request=given,
        instances=(Instance(index=1), Instance(index=2)),
        credentials_path="/x",
        created=0.0,
        modified=0.0,
        **more,
    )


RECORD: dict[str, Any] = {
    "network": {},
    "flows": [],
    "refused": [],
    "requests": [],
    "unknown_names": [],
    "left_out": 0,
    "gaps": [],
}


def _signed() -> str:
    digest = {"objects": 1, "bytes": 2, "sha256": "ab", "first": {"in/ü": "cd"}}
    job = _job(moved={"algo-1/download": {"in": digest}})
    return json.dumps(sign(receipt(job, RECORD, now=1.5), KEY))


def test_a_receipt_verifies_and_says_by_which_key() -> None:
    body, key = verify(_signed())
    assert body["job"]["name"] == "job"
    assert body["made"] == "1970-01-01T00:00:01.500Z"
    assert body["data"]["inputs"]["in"]["uri"] == "s3://bkt/in/"
    assert body["data"]["inputs"]["in"]["algo-1"]["first"] == {"in/ü": "cd"}
    assert key == json.loads(_signed())["signature"]["public_key"]


def test_how_the_json_is_laid_out_does_not_matter() -> None:
    assert verify(json.dumps(json.loads(_signed()), indent=4, ensure_ascii=False)) == verify(_signed())


@given(at=st.integers(0, len(_signed()) - 1), other=st.characters(codec="ascii", exclude_categories=["Cc"]))
def test_no_character_of_its_content_can_be_changed(at: int, other: str) -> None:
    text = _signed()
    changed = text[:at] + other + text[at + 1 :]
    try:
        same = json.loads(changed) == json.loads(text)
    except ValueError:
        same = False
    if same and changed.count('"') == text.count('"'):
        return
    with pytest.raises(NotGenuine):
        verify(changed)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", '{"receipt": {}, "signature": {}}', '{"receipt": 1, "signature": 2}']
)
def test_what_is_no_receipt_is_not_genuine(text: str) -> None:
    with pytest.raises(NotGenuine):
        verify(text)


def test_a_member_given_twice_is_not_genuine() -> None:
    text = _signed()
    with pytest.raises(NotGenuine, match="twice"):
        verify(text[:-1] + ', "receipt": {}}')


def test_the_network_is_told_with_every_rule_and_without_what_is_empty() -> None:
    tx = World().begin()
    for document in documents():
        tx.put(document)
    job = allocate(tx, _job(), clock=0.0, region="us-east-1")
    world = tx.commit()
    network = network_of(world, job)
    assert network["subnet"]["id"] == "subnet-1"
    assert [rule["group_id"] for rule in network["security_groups"][0]["rules"]] == ["sg-1", "sg-1"]
    assert network["route_table"]["id"] == "rtb-1"
    assert set(network["instances"]) == {"algo-1", "algo-2"}
    for interface in list(world.all(NetworkInterface)):
        assert interface.interface_id in {each["interface"] for each in network["instances"].values()}


def test_the_services_own_network_is_told_without_its_ids() -> None:
    tx = World().begin()
    job = _job()
    given = copy.deepcopy(job.request)
    del given["NetworkConfig"]
    job = allocate(tx, _job_with(given), clock=0.0, region="us-east-1")
    network = network_of(tx.commit(), job)
    assert network["network"] == "the service's own, with internet access"
    for hidden in ("vpc-", "subnet-", "sg-", "eni-"):
        assert hidden not in json.dumps(network)


def _job_with(given: dict[str, Any]) -> ProcessingJob:
    from dataclasses import replace

    return replace(_job(), request=given)
