"""Values as plain trees, and back.

A *tree* holds only what every serializer can carry: ``None``, ``bool``, ``int`` of 64 bits, finite ``float``, ``str``
of valid Unicode, ``list``, and ``dict`` with such ``str`` keys. Everything else is a *tagged node*:
``{"~": ["decimal", "9.99"]}``. A dict of the user that has the key ``"~"`` is itself stored as a tagged node, so no
value can be mistaken for one.

This module walks; what the tags mean is registered by its neighbours, by *exact* type. A subclass never falls
back to its base, because it would come back as something else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Union

from .preview import preview
from .refusal import OversizeValue, Undecodable, Unencodable, deeper, key_segment, refuse

__all__ = [
    "CLASS_ENCODERS",
    "DECODERS",
    "ENCODERS",
    "TAG",
    "Encode",
    "Tree",
    "TreeEncoder",
    "check_tree",
    "decode_items",
    "decode_pairs",
    "decode_tree",
    "hashable_items",
    "node",
    "spread",
]

Tree = Union[None, bool, int, float, str, "list[Any]", "dict[str, Any]"]
#: ``encode(value, encoder, depth) -> tree``.
Encode = Callable[[Any, "TreeEncoder", int], Tree]
#: ``decode([tag, *payload]) -> value``.
Decode = Callable[["list[Any]"], Any]

#: The one key of a tagged node.
TAG = "~"
#: The encoders by exact type. Classes found through :data:`CLASS_ENCODERS` are remembered here.
ENCODERS: dict[type, Encode] = {}
#: The decoders by tag.
DECODERS: dict[str, Decode] = {}
#: Asked in turn for classes that are not in :data:`ENCODERS`; the first answer that is not ``None`` is used.
CLASS_ENCODERS: list[Callable[[type], Encode | None]] = []

_INT_MIN, _INT_MAX = -(2**63), 2**63 - 1
#: The most members of a set, or keys of a dict, with one hash: each is compared with all others of its hash.
_MOST_ALIKE = 256
_LEAVES = frozenset({type(None), bool, float, str})


def node(tag: str, *payload: Tree) -> Tree:
    """A tagged node; the payload is made of trees."""
    return {TAG: [tag, *payload]}


class TreeEncoder:
    """One walk over one value.

    :param budget: how much may be walked, counted in values plus characters. It keeps a small object graph with
        shared parts from growing without bounds when it is written out as a tree.
    :param ordered: whether the serializer keeps the order of a dict's keys.
    """

    __slots__ = ("left", "ordered")

    def __init__(self, budget: int, ordered: bool = True) -> None:
        self.left = budget
        self.ordered = ordered

    def encode(self, value: Any, depth: int = 0) -> Tree:
        """The tree of ``value``.

        :raises Unencodable: for what would not come back as it is.
        :raises OversizeValue: when the budget is used up.
        """
        kind = type(value)
        if kind is str:
            self.left -= len(value)
            if value.isascii() or _is_unicode(value):
                return value  # type: ignore[no-any-return]
            # UTF-8 and not UTF-16, which would join two lone surrogates that happen to be neighbours.
            return node("str", value.encode("utf-8", "surrogatepass").hex())
        if kind is int:
            return value if _INT_MIN <= value <= _INT_MAX else node("int", hex(value))
        if value is None or kind is bool:
            return value  # type: ignore[no-any-return]
        if kind is float:
            return value if value - value == 0.0 else node("float", repr(value))
        encode = ENCODERS.get(kind)
        if encode is None:
            encode = _encoder_of_class(value, kind)
        return encode(value, self, depth)

    def spend(self, amount: int) -> None:
        """Take ``amount`` from the budget.

        :raises OversizeValue: when nothing is left.
        """
        self.left -= amount
        if self.left < 0:
            raise OversizeValue

    def items(self, values: Any, depth: int) -> list[Tree]:
        """The trees of the items of a list-like value."""
        below = deeper(depth, values)
        self.spend(len(values))
        encode = self.encode
        trees: list[Tree] = []
        append = trees.append
        try:
            for value in values:
                append(encode(value, below))
        except Unencodable as refusal:
            unordered = isinstance(values, (set, frozenset))
            refusal.path.append("[<element>]" if unordered else f"[{len(trees)}]")
            raise
        return trees

    def fields(self, values: dict[str, Any], depth: int, owner: Any) -> dict[str, Tree]:
        """The trees of the named parts of ``owner``, under their names."""
        below = deeper(depth, owner)
        self.spend(len(values))
        encode = self.encode
        trees: dict[str, Tree] = {}
        name = ""
        try:
            for name, value in values.items():
                trees[name] = encode(value, below)
        except Unencodable as refusal:
            refusal.path.append(key_segment(name))
            raise
        return trees

    def pairs(self, values: dict[Any, Any], depth: int) -> list[Tree]:
        """The trees of the entries of a dict, in order, as ``[key, value]``."""
        below = deeper(depth, values)
        self.spend(2 * len(values))
        if not spread(values):
            raise Unencodable(_ALIKE.format("keys"), "")
        encode = self.encode
        trees: list[Tree] = []
        part = ""
        try:
            for key, value in values.items():
                part = f".<key {len(trees)}>"
                key_tree = encode(key, below)
                part = key_segment(key)
                trees.append([key_tree, encode(value, below)])
        except Unencodable as refusal:
            refusal.path.append(part)
            raise
        return trees


def decode_tree(tree: Any) -> Any:
    """The value of a tree.

    :raises Undecodable: when this program lacks something the value needs, such as its class.
    :raises Exception: of any kind when the tree is malformed.
    """
    kind = type(tree)
    if kind is dict:
        if TAG in tree:
            (tagged,) = tree.values()
            decode = DECODERS.get(tagged[0])
            if decode is None:
                raise Undecodable(
                    f"it has parts of the unknown kind {preview(tagged[0], 40)}; was it written by a newer version?"
                )
            return decode(tagged)
        return {key: decode_tree(value) for key, value in tree.items()}
    if kind is list:
        return [decode_tree(value) for value in tree]
    return tree


def decode_items(tagged: list[Any]) -> list[Any]:
    """The values of the items of a list-like node."""
    _, trees = tagged
    if type(trees) is not list:
        raise TypeError("its items are not a list")
    return [decode_tree(tree) for tree in trees]


def hashable_items(tagged: list[Any]) -> list[Any]:
    """The same of a node that becomes a set."""
    return _checked(decode_items(tagged))


def decode_pairs(tagged: list[Any]) -> dict[Any, Any]:
    """The entries of a node that becomes a dict."""
    _, trees = tagged
    pairs = [(decode_tree(key), decode_tree(value)) for key, value in trees]
    _checked([key for key, _ in pairs])
    return dict(pairs)


def spread(members: Any) -> bool:
    """Whether a set or dict of these takes no longer than its size lets one expect. Numbers can be chosen to have one
    hash, which would keep a process busy for hours.
    """
    return len(members) <= _MOST_ALIKE or max(Counter(map(hash, members)).values()) <= _MOST_ALIKE


_ALIKE = f"a collection with more than {_MOST_ALIKE} {{}} that have the same hash. Use a list."


def _checked(members: list[Any]) -> list[Any]:
    if not spread(members):
        raise Undecodable(f"it is {_ALIKE.format('members')}")
    return members


def check_tree(tree: Any) -> None:
    """Make sure that a serializer which can carry more has brought nothing but a tree.

    :raises Exception: of any kind when it is none.
    """
    kind = type(tree)
    if kind in _LEAVES:
        return
    if kind is int:
        if not _INT_MIN <= tree <= _INT_MAX:
            raise ValueError("an integer is too large")
    elif kind is list:
        for item in tree:
            check_tree(item)
    elif kind is dict:
        for key, value in tree.items():
            if type(key) is not str:
                raise TypeError(f"a key is not text but {type(key).__name__}")
            check_tree(value)
    else:
        raise TypeError(f"there is a {kind.__name__} in it")


def _encoder_of_class(value: Any, kind: type) -> Encode:
    for find in CLASS_ENCODERS:
        encode = find(kind)
        if encode is not None:
            # Remembering does not keep a class alive that would otherwise go: only classes that can be
            # imported by name get this far.
            ENCODERS[kind] = encode
            return encode
    raise refuse(value)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _encode_list(value: list[Any], encoder: TreeEncoder, depth: int) -> Tree:
    return encoder.items(value, depth)


def _encode_dict(value: dict[Any, Any], encoder: TreeEncoder, depth: int) -> Tree:
    # Keys are looked at before any value is walked: finding an odd key late would walk the values twice, and
    # nested dicts would double that at every level.
    if encoder.ordered or len(value) < 2:
        for key in value:
            if type(key) is not str or key == TAG or not (key.isascii() or _is_unicode(key)):
                break
            encoder.left -= len(key)
        else:
            return encoder.fields(value, depth, value)
    return node("dict", encoder.pairs(value, depth))


ENCODERS[list] = _encode_list
ENCODERS[dict] = _encode_dict
DECODERS["dict"] = decode_pairs
DECODERS["str"] = lambda tagged: bytes.fromhex(tagged[1]).decode("utf-8", "surrogatepass")
DECODERS["int"] = lambda tagged: int(tagged[1], 16)
DECODERS["float"] = lambda tagged: float(tagged[1])
