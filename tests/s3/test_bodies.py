"""Documents and numbers that callers send, as they should not be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.s3.conftest import Site
from tests.s3.test_door import raw

from cloister.s3.buckets import parse_xml
from cloister.wire.errors import AwsError

_ENTITIES = '<!DOCTYPE Delete [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]>'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp037"])
def test_a_document_type_is_refused_in_every_encoding(encoding: str) -> None:
    for declared in ("", f'<?xml version="1.0" encoding="{encoding}"?>'):
        text = f"{declared}{_ENTITIES}<Delete><Object><Key>&b;</Key></Object></Delete>"
        with pytest.raises(AwsError, match="MalformedXML"):
            parse_xml(text.encode(encoding))


def test_a_document_in_utf_8_is_read_whatever_it_declares() -> None:
    for declared in ("", '<?xml version="1.0" encoding="UTF-8"?>', "\ufeff"):
        text = f'{declared}<Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Key>\u00e9</Key></Delete>'
        assert parse_xml(text.encode()).findtext("Key") == "\u00e9"


@pytest.mark.parametrize("number", ["%C2%B2", "0", "-1", "1e3", "9" * 5000, "%D9%A1"])
def test_a_number_of_buckets_that_is_none_is_refused(
    site: Site, bucket: Callable[[], str], number: str
) -> None:
    status, _, body = raw(site, "GET", f"/?max-buckets={number}")
    assert (status, b"max-buckets must be an integer" in body) == (400, True)
