"""Arrays of zarr stores that nobody vouches for: what is read takes no more than it should.

A chunk may be packed so that a kilobyte unpacks to gigabytes, and its array may name codecs that
run code. So only what unpacks into a buffer of the chunk's own size is read.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import imagecodecs
import zarr
from numcodecs.abc import Codec
from zarr.abc.codec import BytesBytesCodec
from zarr.abc.store import RangeByteRequest
from zarr.codecs import (
    BloscCodec,
    BytesCodec,
    Crc32cCodec,
    GzipCodec,
    ShardingCodec,
    TransposeCodec,
    ZstdCodec,
)
from zarr.storage import LocalStore, StorePath, WrapperStore

from ..errors import CdalError

__all__ = ["largest_file", "open_array"]

_LARGEST_CHUNK = 2**28  # bytes; unpacked whole, whatever part is read
_SLACK = 2**16  # bytes that a compressed chunk may have beyond an uncompressed one
_REGION = 2048  # pixels: about the edge of what is read at once
_MOST_CHUNKS = 2**14  # of that region; each is looked for by its name
_MOST_IN_SHARD = 2**20  # whose index is read whole
_REMEDY = "save it again with blosc, zstd or gzip, each chunk packed once"

Decoder = Callable[..., Any]
_DECODERS: dict[str, Decoder] = {
    "blosc": imagecodecs.blosc_decode,
    "gzip": imagecodecs.gzip_decode,
    "lz4": partial(imagecodecs.lz4_decode, header=True),
    "zlib": imagecodecs.zlib_decode,
    "zstd": imagecodecs.zstd_decode,
}
_PACKED = {BloscCodec: "blosc", GzipCodec: "gzip", ZstdCodec: "zstd"}
_OF_ONE_SIZE = (BytesCodec, Crc32cCodec, TransposeCodec)


def open_array(path: Path) -> zarr.Array[Any]:
    """Open an array to read from it; what its chunks unpack to is bounded by their shape.

    Raises
    ------
    CdalError
        If its chunks are too large, or packed in ways that cannot be bounded.
    """
    array: Any = zarr.open_array(path, mode="r")
    size = math.prod(array.chunks) * array.dtype.itemsize
    at_once = (
        -(-min(n, _REGION) // each) for n, each in zip(array.shape, array.chunks, strict=True)
    )
    if size > _LARGEST_CHUNK or math.prod(at_once) > _MOST_CHUNKS:
        raise CdalError(
            f"a chunk of it has the shape {array.chunks}",
            f"save chunks of up to {_LARGEST_CHUNK >> 20} MB, and not of a few pixels each",
            path,
        )
    if array.metadata.zarr_format == 2:
        metadata = _bounded_v2(array.metadata, size)
    else:
        metadata = replace(array.metadata, codecs=_bounded_v3(array, size))
    store = _Bounded(LocalStore(path, read_only=True), _packed(size))
    return zarr.Array(zarr.AsyncArray(metadata, StorePath(store)))


def largest_file(array: Any) -> int:
    """Bytes of the largest file that may hold a chunk or shard of an array."""
    return _packed(math.prod(array.shards or array.chunks) * array.dtype.itemsize)


def _packed(size: int) -> int:
    return size * 9 // 8 + _SLACK


def _bounded_v2(metadata: Any, size: int) -> Any:
    packer = metadata.compressor
    if metadata.filters or not (packer is None or packer.codec_id in _DECODERS):
        names = [each.codec_id for each in (*(metadata.filters or ()), packer) if each]
        raise _unread(names)
    return replace(metadata, compressor=packer and _Unpacking(packer.codec_id, size))


def _bounded_v3(array: Any, size: int) -> tuple[Any, ...]:
    codecs = array.metadata.codecs
    if len(codecs) > 1 or not isinstance(codecs[0], ShardingCodec):
        return _bounded(codecs, size)
    sizes = zip(array.shards, array.chunks, strict=True)
    if math.prod(shard // chunk for shard, chunk in sizes) > _MOST_IN_SHARD:
        raise CdalError(
            f"its shards of {array.shards} have chunks of {array.chunks}", "save larger chunks"
        )
    return (replace(codecs[0], codecs=_bounded(codecs[0].codecs, size)),)


def _bounded(codecs: Iterable[Any], size: int) -> tuple[Any, ...]:
    """The codecs of a chunk; the one that unpacks it bounded."""
    names = [codec.to_dict()["name"] for codec in codecs]
    packers = [codec for codec in codecs if type(codec) in _PACKED]
    known = all(isinstance(codec, (*_OF_ONE_SIZE, *_PACKED)) for codec in codecs)
    if len(packers) > 1 or not known:
        raise _unread(names)
    return tuple(
        _UnpackingV3(_PACKED[type(codec)], size) if codec in packers else codec for codec in codecs
    )


def _unread(names: list[str]) -> CdalError:
    return CdalError(f"its chunks are packed by {', '.join(names)}, which is not read", _REMEDY)


def _unpack(name: str, data: Any, size: int) -> bytes:
    unpacked: bytes = _DECODERS[name](data, out=size)
    if len(unpacked) != size:
        raise ValueError(f"a chunk of {size} bytes unpacks to {len(unpacked)}")
    return unpacked


class _Unpacking(Codec):  # type: ignore[misc]
    """Of zarr 2."""

    codec_id = "bounded"

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size

    def encode(self, buf: Any) -> bytes:
        raise NotImplementedError

    def decode(self, buf: Any, out: Any = None) -> bytes:
        return _unpack(self.name, buf, self.size)


@dataclass(frozen=True)
class _UnpackingV3(BytesBytesCodec):
    """Of zarr 3."""

    name: str
    size: int
    is_fixed_size = False

    async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        data = await asyncio.to_thread(_unpack, self.name, chunk_bytes.as_numpy_array(), self.size)
        return chunk_spec.prototype.buffer.from_bytes(data)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: Any) -> int:
        raise NotImplementedError


class _Bounded(WrapperStore[LocalStore]):
    """Reads no part of a file, as a shard's index names them, larger than a chunk can be."""

    def __init__(self, store: LocalStore, most: int) -> None:
        super().__init__(store)
        self._most = most

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        part = byte_range if isinstance(byte_range, RangeByteRequest) else None
        if part is not None and part.end - part.start > self._most:
            raise ValueError("a shard's index is wrong")
        return await super().get(key, prototype, byte_range)
