"""A FailureReason keeps AWS's sentence and adds the rule behind it, with its change where that fits."""

from __future__ import annotations

from cloister.jobs.reasons import LIMIT, with_cause
from cloister.vpc.flow import Step

S3 = "ClientError: Failed to download data. GetObject failed for s3://b/k: User: U is not authorized"
KNOWN = "User: U is not authorized"


def _step(sentence: str, fix: str | None = None) -> Step:
    return Step(gate="endpoint policy", allowed=False, origin="vpce-1/No", sentence=sentence, fix=fix)


def test_without_a_refusal_the_reason_stays_as_it_is() -> None:
    assert with_cause("AlgorithmError: , exit code: 1", None, "job") == "AlgorithmError: , exit code: 1"


def test_a_refusal_follows_with_the_command_that_changes_it() -> None:
    said = with_cause("ClientError: No way.", _step("rtb-1 has no route.", "aws x"), "job", what="algo-1: ")
    assert said == "ClientError: No way: algo-1: rtb-1 has no route. (aws x)"


def test_what_s3_has_said_is_not_said_again() -> None:
    assert with_cause(S3, _step(f"{KNOWN}: No of vpce-1", "aws x"), "job") == f"{S3}: No of vpce-1 (aws x)"


def test_a_command_that_does_not_fit_is_printed_by_why() -> None:
    said = with_cause(S3, _step(f"{KNOWN}: No of vpce-1", "aws " + "x" * LIMIT), "cloister --state S why job")
    assert said == f"{S3}: No of vpce-1 (cloister --state S why job prints the change)"


def test_what_s3_has_said_is_not_said_again_also_before_a_condition() -> None:
    rule = 'No of bucket policy of b, whose condition is {"Bool": {"aws:SecureTransport": "false"}}'
    assert with_cause(S3, _step(f"{KNOWN}: {rule}"), "job") == f"{S3}: {rule}"


def test_who_prints_the_change_is_said_also_where_the_cause_fills_the_limit() -> None:
    said = with_cause(
        S3, _step("No of vpce-1, whose condition is " + "x" * LIMIT, "aws x"), "cloister why job"
    )
    assert len(said) == LIMIT
    assert said.endswith("xxx… (cloister why job prints the change)")
