"""How EC2 describes things: ids, filters, pages. One mechanism, declared per resource as a `Resource`.

A filter is a row of a table: its name and the function of a document that yields the value (or values)
it is compared with. AWS (EC2 user guide, "List and filter your resources"): values of one filter are
joined by OR, filters by AND; `*` stands for any characters, `?` for one, a backslash escapes them;
values are case-sensitive. `tag:KEY` and `tag-key` hold for every resource that has tags.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Generic, TypeVar

from cloister.services.api import Call, Params
from cloister.vpc.service_network import hidden
from cloister.wire.errors import AwsError
from cloister.world import World

D = TypeVar("D")
Scalar = str | bool | int | None
#: what a document is compared by: one value or several; None is no value
Filter = Callable[[Call, D], Scalar | Iterable[Scalar]]

#: AWS: "FilterLimitExceeded": at most 200 values in one call
FILTER_VALUES = 200
_TOKEN_VERSION = 1


#: how what has ids of this prefix is found
BY_PREFIX: dict[str, Resource[Any]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource(Generic[D]):
    """How one kind of document is named, found and described.

    `shape` renders a document as the model's structure. `not_found` is the error's code, `missing` its
    sentence, with {} for the id; `malformed` is the code for what cannot be such an id ("Error codes for the
    Amazon EC2 API": spelt differently for every resource, and there is none for allocation ids). `all` lists
    the documents; `get` looks one up by its id."""

    result: str  # the response's member: "Vpcs"
    ids: str | None = None  # the request's member: "VpcIds"
    key: Callable[[D], str]
    all: Callable[[World], Iterable[D]]
    get: Callable[[World, str], D | None] | None = None
    shape: Callable[[Call, D], Params]
    prefix: str = ""  # "vpc"
    not_found: str = ""  # "InvalidVpcID.NotFound"
    malformed: str = ""  # "InvalidVpcID.Malformed"
    missing: str = ""  # "The vpc ID '{}' does not exist"
    filters: Mapping[str, Filter[D]] = field(default_factory=dict)
    #: the smallest and largest MaxResults
    page: tuple[int, int] = (5, 1000)

    def __post_init__(self) -> None:
        if self.prefix:
            BY_PREFIX.setdefault(self.prefix, self)

    def find(self, world: World, resource_id: str) -> D:
        """Raises `not_found`, and `malformed` for what cannot be such an id at all."""
        found = self.get(world, resource_id) if self.get else None
        if found is None or hidden(world, found):
            raise self.absent(resource_id)
        return found

    def absent(self, resource_id: str) -> AwsError:
        """What is told of an id that names nothing."""
        if self.malformed and not resource_id.startswith(f"{self.prefix}-"):
            return AwsError(self.malformed, f'Invalid id: "{resource_id}" (expecting "{self.prefix}-...")')
        return AwsError(self.not_found, self.missing.format(resource_id))

    def describe(self, call: Call, params: Params, among: Iterable[D] | None = None) -> Params:
        """The response of a Describe operation: the ids asked for, else all, of those `among` if it is given;
        filtered, paged.
        Raises `not_found`, InvalidParameterValue, InvalidParameterCombination, InvalidNextToken."""
        ids: Sequence[str] = params.get(self.ids, ()) if self.ids else ()
        if ids and (params.get("MaxResults") is not None or params.get("NextToken")):
            raise AwsError(
                "InvalidParameterCombination",
                f"The parameter {self.ids} cannot be used with the parameter MaxResults or NextToken",
            )
        documents: Iterable[D]
        if ids:
            shown = None if among is None else {self.key(one) for one in among}
            documents = [self.find(call.tx, one) for one in dict.fromkeys(ids)]
            for one in documents:
                if shown is not None and self.key(one) not in shown:
                    raise self.absent(self.key(one))
        else:
            listed = self.all(call.tx) if among is None else among
            documents = [document for document in listed if not hidden(call.tx, document)]
        found = self.select(call, params.get("Filters", ()), documents)
        page, token = paginate(found, self.key, params, *self.page, scope=self.result)
        response: Params = {self.result: [self.shape(call, document) for document in page]}
        if token:
            response["NextToken"] = token
        return response

    def select(self, call: Call, filters: Sequence[Params], documents: Iterable[D]) -> list[D]:
        """The documents that every filter admits."""
        if sum(len(one.get("Values", ())) for one in filters) > FILTER_VALUES:
            raise AwsError(
                "FilterLimitExceeded",
                f"The maximum number of filter values specified on a single call is {FILTER_VALUES}",
            )
        for one in filters:
            compare, admits = self._filter(one), _matcher(one)
            documents = [
                document
                for document in documents
                if any(admits(value) for value in _texts(compare(call, document)))
            ]
        return list(documents)

    def _filter(self, given: Params) -> Filter[D]:
        name = given.get("Name", "")
        if name in self.filters:
            return self.filters[name]
        if name == "tag-key":
            return lambda call, document: tuple(tags_of(document))
        if name.startswith("tag:"):
            return lambda call, document: tags_of(document).get(name[4:])
        raise AwsError("InvalidParameterValue", f"The filter '{name}' is invalid")


def tags_of(document: object) -> Mapping[str, str]:
    return getattr(document, "tags", {})


def tag_set(tags: Mapping[str, str]) -> list[Params]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def paginate(
    documents: list[D],
    key: Callable[[D], str],
    params: Params,
    least: int,
    most: int,
    *,
    scope: str,
) -> tuple[list[D], str | None]:
    """One page and the token of the next. Pages follow the order of ids, so that a page is neither
    repeated nor lost when documents come and go between two calls. A token only continues the query that
    made it. Raises InvalidParameterValue, InvalidNextToken."""
    size, token = params.get("MaxResults"), params.get("NextToken")
    if size is None and not token:
        return documents, None
    if size is not None and not least <= size <= most:
        bound = f"greater than or equal to {least}" if size < least else f"less than or equal to {most}"
        raise AwsError(
            "InvalidParameterValue",
            f"Value ( {size} ) for parameter maxResults is invalid. Expecting a value {bound}.",
        )
    query = _query_digest(scope, params)
    after = _open_token(token, query) if token else ""
    rest = sorted((document for document in documents if key(document) > after), key=key)
    size = size or most
    page = rest[:size]
    return page, _make_token(key(page[-1]), query) if len(rest) > size else None


def _query_digest(scope: str, params: Params) -> str:
    query = {
        name: value for name, value in params.items() if name not in ("MaxResults", "NextToken", "DryRun")
    }
    text = json.dumps([scope, query], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _make_token(after: str, query: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([_TOKEN_VERSION, query, after]).encode()).decode()


def _open_token(token: str, query: str) -> str:
    try:
        version, made_for, after = json.loads(base64.urlsafe_b64decode(token.encode("ascii")))
    except (binascii.Error, ValueError, TypeError):
        version, made_for, after = None, None, None
    if version != _TOKEN_VERSION or made_for != query or not isinstance(after, str):
        raise AwsError("InvalidNextToken", f"The specified NextToken '{token}' is not valid")
    return after


def _texts(value: Any) -> Iterable[str]:
    if value is None:
        return ()
    if isinstance(value, bool):
        return ("true" if value else "false",)
    if isinstance(value, str | int):
        return (str(value),)
    return [text for one in value for text in _texts(one)]


def _matcher(given: Params) -> Callable[[str], bool]:
    values = given.get("Values", ())
    if not values:
        raise AwsError("InvalidParameterValue", f"The filter '{given.get('Name', '')}' has no values")
    literal = {value for value in values if not re.search(r"[*?\\]", value)}
    patterns = [_tokens(value) for value in values if value not in literal]
    return lambda text: text in literal or any(_matches(pattern, text) for pattern in patterns)


_STAR, _ANY = "*", "?"


@lru_cache(maxsize=1024)
def _tokens(value: str) -> tuple[str, ...]:
    """A pattern's tokens: `*`, `?`, or a literal character as "=c"."""
    found = re.findall(r"\\.|.", value, re.DOTALL)
    return tuple(one if one in (_STAR, _ANY) else "=" + one[-1] for one in found)


def _matches(pattern: tuple[str, ...], text: str) -> bool:
    """Whether a pattern covers a whole text. Never worse than length times length, which a regular
    expression made of many stars would be: only the last star is ever reconsidered."""
    at = position = 0
    star, resume = -1, 0
    while position < len(text):
        if at < len(pattern) and pattern[at] == _STAR:
            star, resume = at, position
            at += 1
        elif at < len(pattern) and pattern[at] in (_ANY, "=" + text[position]):
            at, position = at + 1, position + 1
        elif star >= 0:
            resume += 1
            at, position = star + 1, resume
        else:
            return False
    return all(one == _STAR for one in pattern[at:])
