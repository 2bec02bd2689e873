"""How a key is named in a store that keeps a tree of files. Pure.

S3's keys are flat text: `a`, `a/` and `a/b` are three objects that have nothing to do with each other,
`a//b` and `a/../b` are keys like any other, and a listing has them by the bytes of their whole text:
`a-b` before `a/b`. SeaweedFS keeps `a/b` in a folder `a`, beside which there is no room for an object `a`,
and lists by the names of folders, `a/b` first: `aws s3 sync` then takes what is there for missing, and with
--delete deletes it.

So names are made with which nothing collides, and the tree's order is S3's. A folder's name ends in a single
"0", which is what sorts next to the slash; a zero of the key itself is doubled. SeaweedFS takes a backslash
for a slash: it is "[1", and "[" is "[0". What no file can be called, "", "." and "..", gets a tab behind, and
so does what SeaweedFS calls folders of its own, of parts (".uploads") and of versions ("a.versions").
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from cloister.wire.errors import AwsError

_TO = {"0": "00", "[": "[0", "\\": "[1"}
_FROM = {token: char for char, token in _TO.items()}
_CHARS, _TOKENS = re.compile(r"[0\[\\]"), re.compile(r"00|\[0|\[1")
#: What looks like a name with a tab behind gets one more. Of what XML can carry to the store, it sorts first.
_PAD = "\t"
_PADDED = re.compile(rf"(?:\.{{0,2}}|\.uploads|[^/]*\.versions){_PAD}*")
#: folders that SeaweedFS keeps for itself, and does not list: of the parts of uploads, and of an object's
#: versions, by their ending
_PARTS, _VERSIONS = ".uploads", ".versions"
#: bytes of one level of a name, and of a whole one, that SeaweedFS takes
MAX_LEVEL, MAX_NAME = 255, 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """`stored` is the store's name of a key, `stored_prefix` of the beginning of one, `key` and `prefix` the
    way back. `after` is where a listing goes on after a key, or after all that begins with a common prefix.
    `check` raises AwsError for a key that the store cannot hold."""

    stored: Callable[[str], str]
    stored_prefix: Callable[[str], str]
    after: Callable[[str, bool], str]
    key: Callable[[str], str | None]
    prefix: Callable[[str], str]
    check: Callable[[str], None]
    #: whether pages go on after keys: with a delimiter, SeaweedFS's own tokens lead in circles
    in_order: bool

    def can_be(self, key: str) -> bool:
        """Whether the store could hold this key."""
        try:
            self.check(key)
        except AwsError:
            return False
        return True

    def can_begin(self, prefix: str) -> bool:
        """Whether a key that the store could hold begins so. It would leave out slashes that are too
        many, and list what was not asked for and not decided on."""
        return self.can_be(prefix) or self.can_be(prefix + "x")


def _stored_prefix(text: str) -> str:
    return _CHARS.sub(lambda found: _TO[found[0]], text).replace("/", "0/")


def _stored(key: str) -> str:
    name = _stored_prefix(key)
    return name + _PAD if _PADDED.fullmatch(name, name.rfind("/") + 1) else name


def _after(text: str, whole: bool) -> str:
    return f"{_stored_prefix(text).removesuffix('/')}{_PAD}" if whole else _stored(text)


def _key(name: str) -> str | None:
    """None: a folder, which is no object."""
    leaf = name.rfind("/") + 1
    if leaf == len(name):
        return None
    return _prefix(name[:-1] if _PADDED.fullmatch(name, leaf) else name)


def _prefix(name: str) -> str:
    *folders, rest = name.split("/")
    return "/".join(
        _TOKENS.sub(lambda found: _FROM[found[0]], level)
        for level in (*(folder.removesuffix("0") for folder in folders), rest)
    )


def _check(key: str) -> None:
    name = _stored(key)
    longest = max(len(level.encode()) for level in name.split("/"))
    if longest > MAX_LEVEL:
        what = f"a level of {longest} bytes there (at most {MAX_LEVEL})"
    elif len(name.encode()) > MAX_NAME:
        what = f"{len(name.encode())} bytes there (at most {MAX_NAME})"
    else:
        return
    raise _cannot(key, what)


def _cannot(key: str, what: str) -> AwsError:
    return AwsError(
        "InvalidArgument",
        f"The object store behind Cloister cannot hold the key '{key[:200]}': it has {what}.",
        ArgumentName="key",
        ArgumentValue=key[:200],
    )


#: of our own SeaweedFS
TREE = Names(
    stored=_stored,
    stored_prefix=_stored_prefix,
    after=_after,
    key=_key,
    prefix=_prefix,
    check=_check,
    in_order=True,
)


def _check_plain(key: str) -> None:
    """Of a key as it is: what a tree of files would take for another one."""
    parts = key.removesuffix("/").split("/")
    for number, part in enumerate(parts):
        is_folder = number < len(parts) - 1 or key.endswith("/")
        if part in ("", ".", ".."):
            what = {"": "an empty level (a double or leading slash)"}.get(part, f"the level '{part}'")
        elif "\\" in part:  # SeaweedFS takes it for a slash, and would list another key
            what = "a backslash"
        elif is_folder and (part == _PARTS or part.endswith(_VERSIONS)):
            what = f"the level '{part[:MAX_LEVEL]}', which the store uses itself"
        elif len(part.encode()) > MAX_LEVEL:
            what = f"a level of {len(part.encode())} bytes (at most {MAX_LEVEL})"
        else:
            continue
        raise _cannot(key, what)


def _same(text: str) -> str:
    return text


#: of another store, where others look for their keys; of a SeaweedFS that was filled before there was TREE
PLAIN = Names(
    stored=_same,
    stored_prefix=_same,
    after=lambda text, whole: text,
    key=_same,
    prefix=_same,
    check=_check_plain,
    in_order=False,
)
