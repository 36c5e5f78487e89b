"""Values and exceptions as bytes, and back with exact types.

``codec``       the public object: limits, rows, errors
``formats``     trees <-> bytes (JSON, or what kombu has registered)
``tree``        values <-> plain trees
``builtin``, ``structures``, ``models``, ``exceptions``    what the kinds of values look like as trees
``classes``     classes as references
``refusal``     why a value is refused
``canonical``   values as bytes for fingerprints; one way only
``preview``     values for people
"""

from .codec import Codec, Payload
from .preview import preview

__all__ = ["Codec", "Payload", "preview"]
