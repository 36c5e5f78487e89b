"""Sealed payloads: their bytes never change, and they open in their own place only."""

from __future__ import annotations

import builtins
import os
from collections.abc import Callable
from typing import Any

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from celery_durable.errors import ConfigurationError
from celery_durable.seal import (
    OVERHEAD,
    Box,
    KeyMissing,
    Keyring,
    SealBroken,
    entry_place,
    key_id,
    message_place,
    payload_place,
    promise_place,
)

FIRST, SECOND = bytes(range(32)), bytes(range(32, 64))
NAMESPACE = "shop"
PK = 123_456_789_012_345
PLACE = payload_place("shop", PK, kind=2, codec=17)

#: Made once; a change of them makes every sealed row unreadable.
VECTOR = bytes.fromhex(
    "018ef33eb001010101010101010101010101010101ce99811e04fcd3535bccbdf49c9a88280202020202020202020202"
    "02ebde51b3c4874ec03aed6d54f41f5f48b3ab8b91b40b996e617bdad1b560d8"
)
ENTRY = {
    "generation": 1,
    "scope": "4.0",
    "position": 7,
    "entry": 1,
    "kind": 1,
    "effect": 3,
    "name": "charge",
    "fingerprint": b"\x01" * 32,
    "key": b"\x02" * 32,
    "attempt": 1,
    "codec": 17,
}


def box(*names: str, namespace: str = NAMESPACE) -> Box:
    secrets = {"k1": FIRST, "k2": SECOND}
    return Box(Keyring({name: secrets[name] for name in names or ("k1",)}), namespace)


def fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = iter(range(1, 200))
    monkeypatch.setattr(os, "urandom", lambda size: bytes([next(numbers)]) * size)


# -- the format -------------------------------------------------------------------------------------------------------


def test_the_bytes_never_change(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed(monkeypatch)
    assert box().seal(PK, PLACE, b'{"value": 4200}').hex() == VECTOR.hex()


def test_what_was_sealed_long_ago_opens() -> None:
    assert box().open(PK, PLACE, VECTOR) == b'{"value": 4200}'


def test_the_bytes_of_places_never_change() -> None:
    assert PLACE == b"payload,4:shop123456789012345,2,17,"
    assert entry_place("shop", 5, **ENTRY) == (  # type: ignore[arg-type]
        b"journal,4:shop5,1,3:4.07,1,1,3,6:charge32:" + b"\x01" * 32 + b",32:" + b"\x02" * 32 + b",1,17,"
    )
    assert promise_place("shop", 5, promise="ab", state=1, codec=17) == b"promise,4:shop5,2:ab1,17,"
    assert message_place("shop", 5, message="m1", task="mail", codec=17) == b"outbox,4:shop5,2:m14:mail17,"


def test_a_reader_that_knows_only_the_description_opens_it() -> None:
    """Written from the docstring of the module, without a call of the library."""
    sealed = box().seal(PK, PLACE, b"hello")
    version, kid, salt, commitment, nonce = sealed[0], sealed[1:5], sealed[5:21], sealed[21:37], sealed[37:49]
    assert version == 1
    assert kid == blake3(b"k1", derive_key_context="celery_durable v1 key id").digest(4)
    words = FIRST + (4).to_bytes(4, "big") + b"shop" + PK.to_bytes(8, "big") + salt
    derived = blake3(words, derive_key_context="celery_durable v1 payload").digest(48)
    assert derived[32:] == commitment
    assert AESGCM(derived[:32]).decrypt(nonce, sealed[49:], PLACE) == b"hello"


@given(data=st.binary(max_size=300), pk=st.integers(0, 2**63 - 1), place=st.binary(max_size=60))
def test_what_is_sealed_comes_back(data: bytes, pk: int, place: bytes) -> None:
    sealed = box().seal(pk, place, data)
    assert len(sealed) == len(data) + OVERHEAD
    assert len(data) < 4 or data not in sealed
    assert box().open(pk, place, sealed) == data


# -- what does not open -----------------------------------------------------------------------------------------------


def test_no_bit_of_it_can_be_changed() -> None:
    sealed = box().seal(PK, PLACE, b"4200")
    assert box().open(PK, PLACE, sealed) == b"4200"
    for number in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[number // 8] ^= 1 << number % 8
        with pytest.raises((SealBroken, KeyMissing)):
            box().open(PK, PLACE, bytes(changed))


def test_it_cannot_be_cut() -> None:
    sealed = box().seal(PK, PLACE, b"4200")
    for end in range(len(sealed)):
        with pytest.raises(SealBroken):
            box().open(PK, PLACE, sealed[:end])
    with pytest.raises(SealBroken):
        box().open(PK, PLACE, sealed + b"\0")


@pytest.mark.parametrize(
    ("column", "other"),
    [
        ("generation", 2),
        ("scope", "4.1"),
        ("position", 8),
        ("entry", 0),
        ("kind", 2),
        ("effect", None),
        ("name", "refund"),
        ("fingerprint", None),
        ("key", b"\x03" * 32),
        ("attempt", 2),
        ("codec", 18),
    ],
)
def test_an_entry_cannot_be_moved_or_relabelled(column: str, other: Any) -> None:
    place: Callable[..., bytes] = entry_place
    sealed = box().seal(PK, place("shop", PK, **ENTRY), b"4200")
    with pytest.raises(SealBroken, match="changed, or belongs to another place"):
        box().open(PK, place("shop", PK, **{**ENTRY, column: other}), sealed)


@pytest.mark.parametrize(("pk", "namespace"), [(PK + 1, NAMESPACE), (PK, "shop2")])
def test_it_opens_for_its_own_execution_and_application_only(pk: int, namespace: str) -> None:
    sealed = box().seal(PK, PLACE, b"4200")
    with pytest.raises(SealBroken, match="key commitment"):
        box(namespace=namespace).open(pk, PLACE, sealed)


texts = st.text("ab,:-01", max_size=4)
numbers = st.integers(0, 12)
hashes = st.none() | st.binary(max_size=3)
places = st.one_of(
    st.tuples(st.just("payload"), texts, numbers, numbers, numbers),
    st.tuples(st.just("promise"), texts, numbers, texts, numbers, numbers),
    st.tuples(st.just("outbox"), texts, numbers, texts, texts, numbers),
    st.tuples(
        st.just("journal"),
        *(texts, numbers, numbers, texts, numbers, numbers, numbers, st.none() | numbers, texts, hashes, hashes),
        *(numbers, numbers),
    ),
)


def bytes_of(place: tuple[Any, ...]) -> bytes:
    table, name, pk, *rest = place
    if table == "payload":
        return payload_place(name, pk, kind=rest[0], codec=rest[1])
    if table == "promise":
        return promise_place(name, pk, promise=rest[0], state=rest[1], codec=rest[2])
    if table == "outbox":
        return message_place(name, pk, message=rest[0], task=rest[1], codec=rest[2])
    return entry_place(name, pk, **dict(zip(ENTRY, rest, strict=True)))


@given(one=places, other=places)
def test_no_two_places_have_the_same_bytes(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    assert (bytes_of(one) == bytes_of(other)) == (one == other)


# -- keys -------------------------------------------------------------------------------------------------------------


def test_the_first_key_seals_and_all_of_them_open() -> None:
    old = box("k1").seal(PK, PLACE, b"old")
    both = box("k2", "k1")
    new = both.seal(PK, PLACE, b"new")
    assert (both.open(PK, PLACE, old), both.open(PK, PLACE, new)) == (b"old", b"new")
    assert (both.is_current(old), both.is_current(new)) == (False, True)


def test_a_key_that_is_missing_is_no_damage() -> None:
    sealed = box("k2").seal(PK, PLACE, b"new")
    with pytest.raises(KeyMissing, match="there are only k1") as missing:
        box("k1").open(PK, PLACE, sealed)
    assert missing.value.wanted == key_id("k2")


def test_another_key_under_the_same_name_is_noticed_before_anything_is_decrypted() -> None:
    sealed = box("k1").seal(PK, PLACE, b"4200")
    with pytest.raises(SealBroken, match="key commitment"):
        Box(Keyring({"k1": SECOND}), NAMESPACE).open(PK, PLACE, sealed)


def test_nonces_and_salts_are_fresh(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = box()
    sealed = [one.seal(pk, PLACE, b"4200") for pk in (1, 1, 2)]
    monkeypatch.setattr(os, "getpid", lambda: 1)
    sealed.append(one.seal(1, PLACE, b"4200"))
    salts = [data[5:21] for data in sealed]
    assert salts[0] == salts[1]
    assert len(set(salts)) == 3
    assert len({data[37:49] for data in sealed}) == 4


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "it must be a dict"),
        ([b"x" * 32], "it must be a dict"),
        ({"k1": b"short"}, "key 'k1' must be 32 bytes, and is 5 bytes"),
        ({"k1": "x" * 32}, "key 'k1' must be 32 bytes, and is a str"),
        ({"": b"x" * 32}, "the name '' of a key must be a text"),
        ({1: b"x" * 32}, "the name 1 of a key must be a text"),
    ],
)
def test_bad_keys_are_refused(keys: Any, said: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Keyring(keys)
    assert said in str(refused.value)
    assert "durable_encryption_keys" in str(refused.value)


def test_two_names_with_one_id_are_refused() -> None:
    seen: dict[bytes, str] = {}
    number = 0
    while (name := f"k{number}") and seen.setdefault(key_id(name), name) == name:
        number += 1
    with pytest.raises(ConfigurationError, match="have one id"):
        Keyring({seen[key_id(name)]: FIRST, name: SECOND})


def test_a_key_does_not_show_its_secret() -> None:
    ring = Keyring({"k1": b"not to be seen".ljust(32)})
    assert "seen" not in repr(ring.writer) + repr(ring) + str(ring.writer)


def test_without_the_library_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("cryptography"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ConfigurationError, match=r"pip install 'celery-durable\[encryption\]'"):
        box()
