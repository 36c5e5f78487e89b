"""What one process keeps for an app: settings, codec, store, writer, leases."""

from __future__ import annotations

from .runtime import Runtime, codec_of, envelope_codec_of

__all__ = ["Runtime", "codec_of", "envelope_codec_of"]
