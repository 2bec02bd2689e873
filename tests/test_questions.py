"""What `cloister why` and `check` are asked, and what they say to a question that makes no sense."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from tests.jobs.worlds import documents

from cloister.credentials import Credentials
from cloister.engine import Engine
from cloister.questions import BadQuestion, Questions
from cloister.store import Store
from cloister.vpc.interfaces import create_interface
from cloister.why.preflight import Facts
from cloister.witness import Witness

ACCOUNT = "123456789012"


@pytest.fixture
def questions(tmp_path: Path) -> Iterator[Questions]:
    store = Store(tmp_path / "world.sqlite")
    engine = Engine(store)
    with engine.transaction() as tx:
        for document in documents():
            tx.put(document)
        create_interface(
            tx, subnet_id="subnet-1", group_ids=["sg-1"], addresses=["10.0.1.9"], now=0, attach=("",)
        )

    async def look(request: Any) -> Facts:
        return Facts()

    yield Questions(
        tmp_path,
        engine,
        Credentials(tmp_path, ACCOUNT),
        cast(Witness, None),
        look=look,
        region="us-east-1",
        account=ACCOUNT,
    )
    store.close()


@pytest.mark.parametrize(
    ("question", "named"),
    [
        ({"to": "db.example:5432"}, "'db.example:5432' is no ADDRESS[:PORT]"),
        ({"to": "10.0.1.300"}, "'10.0.1.300' is no ADDRESS[:PORT]"),
        ({"to": "10.0.1.7:99999"}, "'10.0.1.7:99999' is no ADDRESS[:PORT]"),
        ({"to": "10.0.1.7", "protocol": "frob"}, "'frob' is no protocol: tcp, udp, icmp or a number"),
        ({"request": "s3://bkt/key"}, "'s3://bkt/key' is no METHOD URL, as in 'GET s3://BUCKET/KEY'"),
        ({"request": "GET ftp://x/y"}, "'ftp://x/y' is neither an http(s) URL nor s3://BUCKET/KEY"),
        ({"request": "GET s3://bkt/key", "role": "nobody"}, "There is no role 'nobody'"),
    ],
)
def test_a_question_that_makes_no_sense_is_answered_with_what_is_wrong_in_it(
    questions: Questions, question: dict[str, str], named: str
) -> None:
    with pytest.raises(ValueError) as refused:
        questions.why({"from": "10.0.1.9", **question})
    assert str(refused.value).startswith(named)


def test_who_is_not_there_is_named(questions: Questions) -> None:
    with pytest.raises(BadQuestion, match=r"No network interface is 'eni-1'; `aws ec2 describe-network-"):
        questions.why({"from": "eni-1", "to": "10.0.1.7"})


def test_each_thing_wrong_in_a_request_is_a_finding_of_its_own(questions: Questions) -> None:
    given = {"ProcessingJobName": "", "RoleArn": "x", "AppSpecification": {"ImageUri": "cloister/host"}}
    answer = asyncio.run(questions.check({"request": given}))
    assert not answer["ok"]
    sentences = [finding["sentence"] for finding in answer["findings"]]
    assert len(sentences) > 2
    assert all(sentence.startswith("Value ") for sentence in sentences), sentences
