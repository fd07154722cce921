"""SHA-256 of what is small: slots and manifests, which every reader of a store checks.

``hashlib`` loads OpenSSL for it: half a megabyte of private memory, and milliseconds before the first answer. What is
large is hashed by OpenSSL all the same, several times as fast.
"""

from __future__ import annotations

# CPython's own, by the names that it has had; a build may come without (--with-builtin-hashlib-hashes).
try:
    from _sha2 import sha256 as _sha256  # type: ignore[import-not-found]
except ImportError:
    try:
        from _sha256 import sha256 as _sha256  # type: ignore[import-not-found]
    except ImportError:
        from hashlib import sha256 as _sha256


def small_sha256(data: bytes) -> bytes:
    """Return the SHA-256 of some kilobytes (32 bytes)."""
    digest: bytes = _sha256(data).digest()
    return digest
