"""Objects in Amazon's and Google's stores, by Arrow's clients, beside which other threads go on.

Credentials come from where the stores' own tools look for them: the environment, configuration files, the machine's
role. ``AWS_ENDPOINT_URL`` names another server of the same protocol (MinIO, Ceph), ``AWS_NO_SIGN_REQUEST=YES`` and
``GS_NO_SIGN_REQUEST=YES`` read public buckets without credentials, as GDAL does.
"""

import os
from datetime import timedelta
from functools import cache
from pathlib import Path

from pyarrow import dataset, fs

from terrafm_tg.errors import TerraFMError

from .trust import check_address

_PART = 1 << 24  # bytes that are uploaded at once
_CONNECT = 10.0  # seconds
_YES = ("YES", "TRUE", "1")


def is_object(url: str) -> bool:
    """Tells whether an address is of such a store."""
    return url.partition("://")[0].lower() in ("s3", "s3a", "gs", "gcs")


def describe_object(url: str) -> tuple[int, str]:
    """Returns an object's size and version.

    Raises:
        FileNotFoundError: If there is none.
        OSError: If the store cannot be read.
    """
    store, path = _open(url)
    info = store.get_file_info(path)
    if info.type != fs.FileType.File:
        raise FileNotFoundError(path)
    return info.size, str(info.mtime_ns)


def read_range(url: str, start: int, stop: int) -> bytes:
    """Reads the bytes ``[start, stop)`` of an object, as far as it has them: one request.

    Errors as :func:`describe_object`.
    """
    store, path = _open(url)
    # A fragment is told a size: asked for it, the store would be asked twice for each range.
    fragment = dataset.IpcFileFormat().make_fragment(path, store, file_size=stop)
    return fragment.open().read_at(stop - start, start)


def upload(path: Path, url: str) -> None:
    """Writes a file on disk as an object, which is there when it is whole.

    Raises:
        OSError: If it cannot be written.
    """
    store, target = _open(url)
    local = fs.LocalFileSystem()
    fs.copy_files(str(path), target, source_filesystem=local, destination_filesystem=store, chunk_size=_PART)


def remove(url: str) -> None:
    """Removes an object. Errors as :func:`describe_object`."""
    store, path = _open(url)
    store.delete_file(path)


def list_objects(url: str) -> dict[str, int]:
    """Returns the sizes of all objects below an address, by their names below it. Errors as :func:`describe_object`."""
    store, path = _open(url.rstrip("/"))
    found = store.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=True))
    return {info.path.removeprefix(f"{path}/"): info.size for info in found if info.type == fs.FileType.File}


def _open(url: str) -> tuple[fs.FileSystem, str]:
    """Returns the client for an address, and the object's path in its store."""
    protocol, _, path = check_address(url).partition("://")
    bucket = path.partition("/")[0]
    if "@" in bucket:
        raise TerraFMError(
            "An address of an object store holds no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "AWS_PROFILE, or GOOGLE_APPLICATION_CREDENTIALS instead."
        )
    google = protocol.lower().startswith("g")
    names = ("STORAGE_EMULATOR_HOST",) if google else ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    endpoint = next(filter(None, map(os.environ.get, names)), None)
    return _client(os.getpid(), google, endpoint, bucket), path


@cache
def _client(process: int, google: bool, endpoint: str | None, bucket: str) -> fs.FileSystem:
    """Makes one per process: connections are not inherited. The reader above it tries again, not the client."""
    say = os.environ.get
    if google:
        scheme, _, host = (endpoint or "").rpartition("://")
        return fs.GcsFileSystem(
            anonymous=endpoint is not None or say("GS_NO_SIGN_REQUEST", "").upper() in _YES,
            endpoint_override=host or None,
            scheme=scheme or ("http" if endpoint else None),
            retry_time_limit=timedelta(seconds=_CONNECT),
        )
    region = say("AWS_REGION") or say("AWS_DEFAULT_REGION") or ("us-east-1" if endpoint else None)
    return fs.S3FileSystem(
        anonymous=say("AWS_NO_SIGN_REQUEST", "").upper() in _YES,
        endpoint_override=endpoint,
        region=region or fs.resolve_s3_region(bucket),
        connect_timeout=_CONNECT,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),
    )
