"""The codec of one application: values and errors <-> what a journal row holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from celery_durable.errors import ConfigurationError, PayloadError

from . import builtin, models  # noqa: F401  (they register what they encode)
from .classes import import_modules
from .exceptions import LEVELS, decode_exception, encode_exception, is_error
from .formats import JSON_TAG, format_of_row, format_of_setting
from .refusal import OversizeValue, Undecodable, Unencodable, corrupted, oversize
from .tree import TAG, Tree, TreeEncoder, decode_tree

__all__ = ["Codec", "Payload"]

_SCALARS = frozenset({type(None), bool, int, str})
_SMALL = 2**63
#: Every tagged node has this in its JSON; where it is missing, the parsed JSON is the value.
_JSON_TAG_MARK = f'"{TAG}"'.encode()
#: ... unless somebody else wrote it; we never spell it like this.
_JSON_TAG_ESCAPE = b"\\u007"
#: A serializer that compresses may need less than a byte for a value; this bounds the work all the same.
_INEXACT_BUDGET = 16


def _either(tree: Tree) -> Any:
    return decode_exception(tree) if is_error(tree) else decode_tree(tree)


class Payload(NamedTuple):
    """An encoded value, as stored."""

    #: Which serializer and form wrote it; a small positive integer.
    codec: int
    #: The bytes.
    data: bytes


class Codec:
    """Turns values into payloads and back, with exact types, or refuses.

    :param serializer: the name of a serializer of kombu's registry (setting ``durable_serializer``). It carries
        plain trees only, so its own notion of types does not matter.
    :param max_payload_bytes: the largest encoded value, in bytes, on write and on read.
    :param accept: other serializers that may be read (setting ``durable_accept_serializers``).
    :param modules: imported before anything is read (setting ``durable_modules``).
    :param outcomes: content types in which Celery's result serializer may have written the outcome of a task.
    :raises ConfigurationError: for a serializer that is not there, or a limit that is not positive.
    """

    def __init__(
        self,
        serializer: str = "json",
        max_payload_bytes: int = 1_048_576,
        *,
        accept: Sequence[str] = (),
        modules: Sequence[str] = (),
        outcomes: frozenset[str] = frozenset(),
    ) -> None:
        if max_payload_bytes < 1:
            raise ConfigurationError(
                f"durable_max_payload_bytes = {max_payload_bytes!r} must be a positive number of bytes.",
                setting="durable_max_payload_bytes",
            )
        self.serializer = serializer
        self.max_payload_bytes = max_payload_bytes
        self.outcomes = outcomes
        self._accept = frozenset(accept)
        self._modules = tuple(modules)
        self._format = format_of_setting(serializer)
        self._is_json = self._format.tag == JSON_TAG
        self._budget = max_payload_bytes * (1 if self._format.exact else _INEXACT_BUDGET)

    def encode(self, value: Any, where: str = "value") -> Payload:
        """The payload of a value.

        :param where: names the value in an error, such as "the result of step 'charge'".
        :raises PayloadError: when the value would not come back as it is; it names the path and the type.
        :raises PayloadTooLarge: when it takes more than the limit.
        """
        kind = type(value)
        if kind in _SCALARS and (
            value is None or kind is bool or (value.isascii() if kind is str else -_SMALL <= value < _SMALL)
        ):
            return self._finish(self._dump(value, where), where)
        try:
            encoder = TreeEncoder(self._budget, self._format.ordered)
            tree = encoder.encode(value)
            encoder.spend(0)
        except Unencodable as refusal:
            raise refusal.error(where) from refusal.__cause__
        except OversizeValue as error:
            raise error.error(where, self.max_payload_bytes) from None
        except RecursionError:
            raise PayloadError(
                f"{where} cannot be stored in the journal: Python's recursion limit was reached while it was encoded. "
                "Flatten it, or call from a shallower stack.",
                where=where,
            ) from None
        return self._finish(self._dump(tree, where), where)

    def encode_tree(self, tree: Tree, where: str = "value") -> Payload:
        """The payload of a value that is known to be a plain tree, as :mod:`.tree` has it: nothing is looked at.

        :raises PayloadTooLarge: when it takes more than the limit.
        """
        return self._finish(self._dump(tree, where), where)

    def encode_json(self, value: Any) -> Payload | None:
        """The payload of a value of which nothing matters but its JSON: subclasses and tuples come back as the plain
        types. Much cheaper than :meth:`encode`.

        :returns: None where the serializer is another one, or where it would read as something else.
        :raises TypeError, ValueError, RecursionError: for what is no JSON.
        """
        if not self._is_json:
            return None
        data = self._format.dump(value)
        return None if _JSON_TAG_MARK in data else self._finish(data, "value")

    def is_plain(self, payload: Payload) -> bool:
        """Whether it is a value's JSON and nothing more: no type that JSON lacks is in it."""
        return payload.codec == JSON_TAG and _JSON_TAG_MARK not in payload.data

    def decode(self, codec: int, data: bytes, where: str = "value") -> Any:
        """The value of a payload, whichever of the accepted serializers wrote it.

        :param where: as in :meth:`encode`.
        :raises PayloadTooLarge: before anything is decoded.
        :raises JournalCorrupted: when the bytes are damaged.
        :raises PayloadError: when this program lacks what the value needs: its class, a field, the serializer.
        """
        return self._read(codec, data, where, decode_tree)

    def _read(self, codec: int, data: bytes, where: str, rebuild: Callable[[Tree], Any]) -> Any:
        if len(data) > self.max_payload_bytes:
            raise oversize(where, len(data), self.max_payload_bytes)
        if type(data) is not bytes:
            data = bytes(data)  # some drivers give memoryview or bytearray
        if self._modules:
            import_modules(self._modules)
            self._modules = ()
        if codec == JSON_TAG and self._is_json:
            form = self._format
            plain = rebuild is decode_tree and _JSON_TAG_MARK not in data and _JSON_TAG_ESCAPE not in data
        else:
            form = format_of_row(codec, data, where, self._format, self._accept)
            plain = False
        try:
            tree = form.load(data)
            return tree if plain else rebuild(tree)
        except Undecodable as error:
            raise PayloadError(f"{where} cannot be read back from the journal: {error}.", where=where) from error
        except RecursionError:
            raise PayloadError(
                f"{where} cannot be read back from the journal: Python's recursion limit was reached while it was "
                "decoded. Call from a shallower stack.",
                where=where,
            ) from None
        # Damaged bytes make serializers and constructors raise nearly anything.
        except Exception as error:
            raise corrupted(where, f"{type(error).__name__}: {error}") from error

    def roundtrip(self, value: Any, where: str = "value") -> tuple[Payload, Any]:
        """The payload of a value, and the value as a replay would give it.

        :raises PayloadError: as :meth:`encode` and :meth:`decode`.
        """
        payload = self.encode(value, where)
        if type(value) in _SCALARS:
            # These are immutable and come back equal: there is nothing that a replay could change.
            return payload, value
        return payload, self.decode(payload.codec, payload.data, where)

    def encode_error(self, exc: BaseException, where: str = "error") -> Payload:
        """The payload of an exception. What cannot be stored of it is left out, never refused.

        :raises PayloadTooLarge: only when the limit is too small for the bare class name and one line of text.
        """
        for level in LEVELS:
            tree = encode_exception(exc, level=level, budget=self._budget // 2, ordered=self._format.ordered)
            try:
                data = self._dump(tree, where)
            except PayloadError:
                # A serializer with limits of its own: the thinner the record, the fewer it meets.
                if level == LEVELS[-1]:
                    raise
                continue
            if len(data) <= self.max_payload_bytes:
                break
        return self._finish(data, where)

    def decode_error(self, codec: int, data: bytes, where: str = "error") -> BaseException:
        """The exception of a payload: its own class where it can be rebuilt, else ``ErrorPlaceholder``.

        :raises PayloadError: as :meth:`decode`.
        """
        exc: BaseException = self._read(codec, data, where, decode_exception)
        return exc

    def decode_either(self, codec: int, data: bytes, where: str = "value") -> Any:
        """The value of a payload, or the exception, where it may be the one or the other.

        :raises PayloadError: as :meth:`decode`.
        """
        return self._read(codec, data, where, _either)

    def roundtrip_error(self, exc: BaseException, where: str = "error") -> tuple[Payload, BaseException]:
        """The payload of an exception, and the exception as a replay would raise it.

        The rebuilt one keeps the live traceback of ``exc``, which a debugger wants and no body can depend on.
        """
        payload = self.encode_error(exc, where)
        rebuilt = self.decode_error(payload.codec, payload.data, where)
        return payload, rebuilt.with_traceback(exc.__traceback__)

    def _dump(self, tree: Tree, where: str) -> bytes:
        try:
            return self._format.dump(tree)
        except Exception as error:
            raise PayloadError(
                f"{where} cannot be stored in the journal: the serializer {self.serializer!r} "
                f"(setting durable_serializer) refused it: {type(error).__name__}: {error}",
                where=where,
            ) from error

    def _finish(self, data: bytes, where: str) -> Payload:
        if len(data) > self.max_payload_bytes:
            raise oversize(where, len(data), self.max_payload_bytes)
        return Payload(self._format.tag, data)
