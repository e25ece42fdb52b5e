"""An object on storage that fsspec reaches, S3 above all: those of Path's verbs that reading a store needs, and the few
by which object stores commit: an object appears whole, and can be written on the condition that nobody has changed it.
"""

import base64
import errno
import hashlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import count
from pathlib import Path, PurePosixPath

from shared.store.chunks import crc32c

PARALLEL = 8  # requests side by side, where many objects move
S3 = {"s3", "s3a"}
READ_TRIES = 3  # of an answer that breaks off
CONFLICTS = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}


class Conflict(Exception):
    """The object is not at the version that a conditional write expected."""


@lru_cache
def filesystem(protocol: str, process: int):
    """The protocol's client of this process: its event loop and sockets do not survive a fork."""
    import fsspec  # takes 0.1 s, which local stores need not spend

    return fsspec.filesystem(protocol, use_listings_cache=False)


@contextmanager
def _named(url: str) -> Iterator[None]:
    """Whatever a client library raises becomes an OSError that names the object and says why, on one line."""
    try:
        yield
    except (TypeError, AttributeError, NotImplementedError):
        raise  # not the storage's
    except Exception as error:
        text = " ".join(str(error).split())
        if isinstance(error, FileNotFoundError):
            number, text = errno.ENOENT, text if "bucket" in text else os.strerror(errno.ENOENT)
        elif isinstance(error, PermissionError) or type(error).__name__ == "NoCredentialsError":
            number = errno.EACCES
        else:
            number, text = errno.EREMOTEIO, f"{type(error).__name__}: {text}"
        raise OSError(number, text, url) from error


def _code(error: BaseException) -> str:
    """The object store's own code of an error, `PreconditionFailed` and the like; "" where there is none."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None) or {}
    return response.get("Error", {}).get("Code", "")


def checksum_text(crc: int) -> str:
    """A CRC-32C as S3 writes it."""
    return base64.b64encode(crc.to_bytes(4, "big")).decode()


@dataclass(frozen=True, order=True)
class ObjectPath:
    """An object, or a prefix with objects below it. Small and pickled to workers; holds no connection.

    url: without a slash at its end. Every method raises OSError with errno, text and `filename` set: FileNotFoundError
    and PermissionError, and EREMOTEIO for what the client library's own retries could not mend.
    """

    url: str
    kind: str = field(default="", compare=False)  # "file" or "directory", where a listing has said so

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> "ObjectPath":
        return ObjectPath(f"{self.url}/{name}")

    protocol = property(lambda self: self.url.partition("://")[0])
    fs = property(lambda self: filesystem(self.protocol, os.getpid()))
    s3 = property(lambda self: self.protocol in S3)
    name = property(lambda self: self.url.rpartition("/")[2])
    stem = property(lambda self: PurePosixPath(self.name).stem)
    suffix = property(lambda self: PurePosixPath(self.name).suffix)

    @property
    def parent(self) -> "ObjectPath":
        return ObjectPath(self.url.rpartition("/")[0])

    @property
    def parents(self) -> list["ObjectPath"]:
        """The prefixes above, nearest first, down to the bucket."""
        protocol, _, path = self.url.partition("://")
        parts = path.split("/")
        return [ObjectPath(f"{protocol}://{'/'.join(parts[:count])}") for count in range(len(parts) - 1, 0, -1)]

    def relative_to(self, other: "ObjectPath") -> PurePosixPath:
        return PurePosixPath(self.url).relative_to(other.url)

    def absolute(self) -> "ObjectPath":
        return self

    resolve = absolute

    # Looking.

    def exists(self) -> bool:
        with _named(self.url):
            return self.fs.exists(self.url)

    def is_dir(self) -> bool:
        if self.kind:
            return self.kind == "directory"
        with _named(self.url):
            return self.fs.isdir(self.url)

    def is_file(self) -> bool:
        if self.kind:
            return self.kind == "file"
        with _named(self.url):
            return self.fs.isfile(self.url)

    def iterdir(self) -> list["ObjectPath"]:
        """What is right below, sorted; nothing where there is no such prefix."""
        return [ObjectPath(f"{self.url}/{name}", entry["type"]) for name, entry in self._right_below()]

    def _right_below(self) -> list[tuple[str, dict]]:
        if self.kind == "file":
            return []
        try:
            with _named(self.url):
                entries = self.fs.ls(self.url, detail=True)
        except FileNotFoundError as error:
            if _code(error.__cause__) == "NoSuchBucket":
                raise
            return []
        found = {entry["name"].rstrip("/").rpartition("/")[2]: entry for entry in entries
                 if entry["name"].strip("/") != self._inner()}
        return [(name, found[name]) for name in sorted(found) if name]

    def glob(self, pattern: str) -> list["ObjectPath"]:
        """As pathlib's, without `**`; one listing for every prefix on the way."""
        found = [self]
        for part in pattern.split("/"):
            found = [entry for place in found for entry in place.iterdir() if fnmatchcase(entry.name, part)]
        return found

    def find(self) -> dict[str, int]:
        """{name relative to this prefix: bytes} of every object below, from listings of 1,000."""
        return {name: entry["size"] for name, entry in self._below()}

    def states(self) -> dict[str, str]:
        """As `find`, but what tells an object's bytes from others: their number, and S3's ETag or what else is said."""
        return {name: _state(entry) for name, entry in self._below()}

    def states_right_below(self) -> dict[str, str]:
        """As `states`, of the objects that lie right below, from one listing."""
        return {name: _state(entry) for name, entry in self._right_below() if entry["type"] == "file"}

    def state(self) -> str:
        """Of this object, as `states` has it."""
        with _named(self.url):
            return _state(self.fs.info(self.url))

    def _below(self) -> list[tuple[str, dict]]:
        with _named(self.url):
            entries = self.fs.find(self.url, detail=True)
        skip = len(self._inner()) + 1
        return [(name.strip("/")[skip:], entry) for name, entry in sorted(entries.items())
                if name.strip("/") != self._inner()]

    def _inner(self) -> str:
        return self.fs._strip_protocol(self.url).strip("/")

    # Reading: one request each, but for `blocks`.

    def read_bytes(self) -> bytes:
        with _named(self.url):
            return self.fs.cat_file(self.url, start=0)  # without a start s3fs asks for the size first

    def read_text(self, encoding: str) -> str:
        return self.read_bytes().decode(encoding)

    def read_range(self, start: int, stop: int, etag: str = "") -> bytes:
        """etag: on S3 the version that is meant; where the object is at another, OSError with ESTALE."""
        with _named(self.url):
            if not (etag and self.s3):
                return self.fs.cat_file(self.url, start=start, end=stop)
            try:
                return self._read_version(start, stop, etag)
            except OSError as error:
                if _code(error) not in CONFLICTS:
                    raise
        raise OSError(errno.ESTALE, "has changed since it was looked at", self.url)

    def _read_version(self, start: int, stop: int, etag: str) -> bytes:
        from fsspec.asyn import sync

        bucket, _, key = self._inner().partition("/")
        for left in reversed(range(READ_TRIES)):
            answer = self.fs.call_s3("get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{stop - 1}",
                                     IfMatch=etag)     # tried again by the client itself, unlike what follows
            try:
                return sync(self.fs.loop, answer["Body"].read)
            except Exception:
                if not left:
                    raise
            finally:
                answer["Body"].close()

    def blocks(self, size: int) -> Iterator[bytes]:
        """The object's bytes, `size` at a time, a request each; on S3 all of one version, or an error."""
        with _named(self.url), self.fs.open(self.url, cache_type="none") as file:
            while block := file.read(size):
                yield block

    def fetch(self, target: Path) -> None:
        """Copy the object to a local file."""
        with _named(self.url):
            self.fs.get_file(self.url, str(target))

    def version_and_age(self) -> tuple[str, float]:
        """What `put_if` compares, and the seconds since the object was written.

        On S3 both from one request, the age by the server's own clock; elsewhere a digest, and the age by this clock.
        """
        with _named(self.url):
            if self.s3:
                bucket, _, key = self._inner().partition("/")
                head = self.fs.call_s3("head_object", Bucket=bucket, Key=key)
                now = parsedate_to_datetime(head["ResponseMetadata"]["HTTPHeaders"]["date"])
                return head["ETag"], (now - head["LastModified"]).total_seconds()
            written = self.fs.modified(self.url)
            age = (datetime.now(UTC) - (written if written.tzinfo else written.replace(tzinfo=UTC))).total_seconds()
            return _digest(self.fs.cat_file(self.url)), age

    # Writing: an object appears whole.

    def put(self, data: bytes) -> bool:
        """Write or replace the object. Whether the storage says that it compared the bytes with their CRC-32C."""
        with _named(self.url):
            sent = self._checksum(data)
            out = self.fs.pipe_file(self.url, data, **sent)
            return bool(sent) and out.get("ChecksumCRC32C") == sent["ChecksumCRC32C"]

    def put_parts(self, file: Path, part: int, crc: int) -> bool:
        """Upload a local file to S3 in parts of `part` bytes, a few at a time; returns as `put` does.

        crc: the CRC-32C of the file. Raises OSError when the file has another.
        """
        bucket, _, key = self._inner().partition("/")
        at, call, found = {"Bucket": bucket, "Key": key}, self.fs.call_s3, 0

        def send(number: int, data: bytes) -> tuple[dict, bool]:
            sent = {"ChecksumCRC32C": checksum_text(crc32c(data))}
            out = call("upload_part", **at, UploadId=upload, PartNumber=number, Body=data, **sent)
            compared = out.get("ChecksumCRC32C") == sent["ChecksumCRC32C"]
            return {"PartNumber": number, "ETag": out["ETag"], **sent}, compared

        with _named(self.url), open(file, "rb", buffering=0) as source, ThreadPoolExecutor(PARALLEL // 2) as pool:
            upload = call("create_multipart_upload", **at, ChecksumAlgorithm="CRC32C")["UploadId"]
            try:
                waiting, parts = deque(), []
                for number in count(1):
                    data = source.read(part)
                    if data:
                        found = crc32c(data, found)
                        waiting.append(pool.submit(send, number, data))
                    while waiting and (not data or len(waiting) > PARALLEL // 2):
                        parts.append(waiting.popleft().result())
                    if not data:
                        break
                if found != crc:
                    raise OSError(errno.EIO, "changed before it was uploaded", str(file))
                call("complete_multipart_upload", **at, UploadId=upload,
                     MultipartUpload={"Parts": [entry for entry, _ in parts]})
                return all(compared for _, compared in parts)
            except BaseException:
                call("abort_multipart_upload", **at, UploadId=upload)
                raise

    def put_if(self, data: bytes, version: str | None) -> str:
        """Write the object only if it is at `version` still, None: only if there is none; returns its new version.

        Raises Conflict. On S3 the server decides (If-Match, If-None-Match). Elsewhere fsspec offers exclusive creation
        as its filesystem has it, and no exchange: the object is compared just before it is written.
        """
        with _named(self.url):
            try:
                if version is None:
                    out = self.fs.pipe_file(self.url, data, mode="create", **self._checksum(data))
                elif self.s3:
                    out = self.fs.pipe_file(self.url, data, IfMatch=version, **self._checksum(data))
                elif _digest(self.fs.cat_file(self.url)) == version:
                    out = self.fs.pipe_file(self.url, data)
                else:
                    raise FileExistsError
                return out["ETag"] if self.s3 else _digest(data)
            except OSError as error:
                gone = isinstance(error, FileNotFoundError) and _code(error) != "NoSuchBucket" and version is not None
                if not gone and not isinstance(error, FileExistsError) and _code(error) not in CONFLICTS:
                    raise
        return self._written(data)

    def _written(self, data: bytes) -> str:
        """After a refused write: the version, if it was an earlier try of the client library itself that came first."""
        try:
            before, _ = self.version_and_age()
            if self.read_bytes() == data and self.version_and_age()[0] == before:
                return before
        except FileNotFoundError:
            pass
        raise Conflict(self.url)

    def _checksum(self, data: bytes) -> dict[str, str]:
        return {"ChecksumCRC32C": checksum_text(crc32c(data))} if self.s3 else {}

    def unlink(self) -> None:
        with _named(self.url):
            self.fs.rm_file(self.url)

    def remove_tree(self) -> None:
        """Remove every object below this prefix."""
        with _named(self.url):
            self.fs.rm(self.url, recursive=True)


def _state(entry: dict) -> str:
    return f"{entry['size']}:{entry['ETag'] if 'ETag' in entry else _digest(repr(entry).encode())}"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
