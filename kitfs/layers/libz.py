"""Call the system's zlib through ctypes: the ``zlib`` module cannot stop between the blocks of a deflate stream.

``INFLATE`` is False where zlib cannot be loaded or is too old; callers then use the ``zlib`` module, which cannot
restart a stream. The calls release the interpreter lock. Source: zlib.h, the manual of zlib 1.2.11. Threading: an
``Inflate`` belongs to one thread at a time.
"""

from __future__ import annotations

import ctypes
import zlib
from typing import Any, Final

WINDOW: Final = 32 << 10  # bytes before a block that the block may refer to (RFC 1951 §2)
GZIP: Final = 31  # window bits of a gzip stream: the largest window, with header and trailer
RAW: Final = -15  # window bits of a deflate stream without header and trailer
NO_FLUSH: Final = 0
BLOCK: Final = 5  # stop at the end of the next deflate block
STREAM_END: Final = 1
_OK: Final = 0
_BUFFER_ERROR: Final = -5  # no progress was possible; this is not fatal
_LAST: Final = 64  # in ``data_type``: the stream is in its last block
_AT_BLOCK: Final = 128  # in ``data_type``: inflate() stopped at the end of a block, or of a header


class _Stream(ctypes.Structure):
    """struct z_stream of zlib.h."""

    _fields_ = (
        ("next_in", ctypes.c_void_p),
        ("avail_in", ctypes.c_uint),
        ("total_in", ctypes.c_ulong),
        ("next_out", ctypes.c_void_p),
        ("avail_out", ctypes.c_uint),
        ("total_out", ctypes.c_ulong),
        ("msg", ctypes.c_char_p),
        ("state", ctypes.c_void_p),
        ("zalloc", ctypes.c_void_p),
        ("zfree", ctypes.c_void_p),
        ("opaque", ctypes.c_void_p),
        ("data_type", ctypes.c_int),
        ("adler", ctypes.c_ulong),
        ("reserved", ctypes.c_ulong),
    )


def _load() -> Any:
    """Load zlib. Returns None if it cannot be loaded, or lacks a function."""
    try:
        library = ctypes.CDLL("libz.so.1")
        stream = ctypes.POINTER(_Stream)
        library.zlibVersion.restype = ctypes.c_char_p
        for name, *arguments in (
            ("inflateInit2_", stream, ctypes.c_int, ctypes.c_char_p, ctypes.c_int),
            ("inflate", stream, ctypes.c_int),
            ("inflateEnd", stream),
            ("inflatePrime", stream, ctypes.c_int, ctypes.c_int),
            ("inflateSetDictionary", stream, ctypes.c_char_p, ctypes.c_uint),
            ("inflateGetDictionary", stream, ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint)),
        ):
            function = getattr(library, name)
            function.argtypes = arguments
            function.restype = ctypes.c_int
    except (OSError, AttributeError):
        return None
    return library


_LIBRARY: Final = _load()
INFLATE: Final = _LIBRARY is not None


class Inflate:
    """A decoder of one gzip member (``bits`` is ``GZIP``) or of one deflate stream (``RAW``).

    ``feed`` sets the input. ``run`` decodes into the buffer ``out``. Raises ``zlib.error`` for damaged input.
    """

    def __init__(self, bits: int) -> None:
        self._stream = _Stream()
        self._pointer = ctypes.pointer(self._stream)
        self._input = b""
        self._open = False
        size = ctypes.sizeof(_Stream)
        self._check(_LIBRARY.inflateInit2_(self._pointer, bits, _LIBRARY.zlibVersion(), size))
        self._open = True

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Free the memory of the decoder."""
        if self._open:
            self._open = False
            _LIBRARY.inflateEnd(self._pointer)

    def _check(self, status: int) -> int:
        if status < 0 and status != _BUFFER_ERROR:
            said = self._stream.msg
            raise zlib.error(f"error {status}: {said.decode('ascii', 'replace') if said else 'zlib failed'}")
        if status not in (_OK, STREAM_END, _BUFFER_ERROR):
            raise zlib.error(f"the stream needs a preset dictionary (zlib returned {status})")
        return status

    def feed(self, data: bytes, start: int = 0) -> None:
        """Set the input: the bytes of ``data`` from ``start`` on."""
        self._input = data
        address = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0
        self._stream.next_in = address + start
        self._stream.avail_in = len(data) - start

    @property
    def left(self) -> int:
        """Return how many bytes of the input are not consumed yet."""
        return int(self._stream.avail_in)

    def run(self, out: int, size: int, flush: int) -> tuple[int, bool]:
        """Decode at most ``size`` bytes to the address ``out``. Return (number of bytes, whether the stream ended)."""
        self._stream.next_out = out
        self._stream.avail_out = size
        status = self._check(_LIBRARY.inflate(self._pointer, flush))
        return size - self._stream.avail_out, status == STREAM_END

    @property
    def bits(self) -> int | None:
        """Return how many bits of the last consumed byte belong to the next block.

        Returns None unless the decoder has stopped between two blocks.
        """
        state = self._stream.data_type
        return state & 7 if state & _AT_BLOCK and not state & _LAST else None

    def window(self) -> bytes:
        """Return the last decoded bytes that later blocks may refer to, at most ``WINDOW`` of them."""
        buffer = ctypes.create_string_buffer(WINDOW)
        length = ctypes.c_uint(0)
        self._check(_LIBRARY.inflateGetDictionary(self._pointer, buffer, ctypes.byref(length)))
        return buffer.raw[: length.value]

    def restore(self, window: bytes, bits: int, value: int) -> None:
        """Continue a deflate stream between two blocks.

        ``window`` has the decoded bytes before the next block, and ``value`` the ``bits`` bits that precede the input.
        """
        if bits:
            self._check(_LIBRARY.inflatePrime(self._pointer, bits, value))
        if window:
            self._check(_LIBRARY.inflateSetDictionary(self._pointer, window, len(window)))
