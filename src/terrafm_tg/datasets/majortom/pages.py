"""Headers of Parquet pages, looked at before a library decodes the pages.

PyArrow takes the memory that the header of a page asks for, and decodes as many values as it names; the footer, which
is all that one sees from outside, need not agree. The headers are Thrift's compact protocol:
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift (``PageHeader``).
"""

from typing import Any

_VERSION_1, _DICTIONARY, _VERSION_2 = 5, 7, 8  # fields that say more of a page of that kind
_ENCODINGS = (0, 2, 3, 8)  # plain, by a dictionary, by run lengths: none that makes much of a few bytes
_STRUCT, _BINARY = 12, 8


def check_pages(chunk: bytes, declared: int) -> None:
    """Refuses a column chunk of a single row whose pages are more than the footer says.

    Args:
        chunk: Its bytes as stored.
        declared: Bytes of its pages when they are not compressed, by the footer.

    Raises:
        ValueError: If a page has more than one value, needs more bytes, or has no header that is understood.
    """
    at, size = 0, 0
    try:
        while at < len(chunk):
            header, at = _read_struct(chunk, at)
            (kind,) = {_VERSION_1, _DICTIONARY, _VERSION_2} & header.keys()
            values, encoding = header[kind][1], header[kind][4 if kind == _VERSION_2 else 2]
            size, at = size + header[2], at + header[3]
            if values not in (0, 1) or encoding not in _ENCODINGS or header[2] < 0 or header[3] < 0:
                raise ValueError(f"a page with {values:,} values in encoding {encoding}")
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise ValueError(f"its pages are none of one picture ({error})") from error
    if size > declared:
        raise ValueError(f"its pages need {size:,} bytes, expected {declared:,} at most")


def _read_struct(data: bytes, at: int) -> tuple[dict[int, Any], int]:
    """Reads the fields of a struct, by their number, and returns what follows it."""
    fields, number = dict[int, Any](), 0
    while head := data[at]:
        at += 1
        number, at = (number + (head >> 4), at) if head >> 4 else _read_integer(data, at)
        if number in fields:  # readers differ in which one they take
            raise ValueError(f"field {number} twice")
        kind = head & 15
        if kind in (1, 2):  # true, false
            fields[number] = kind
        elif kind in (4, 5, 6):
            fields[number], at = _read_integer(data, at)
        elif kind == _BINARY:
            length, at = _read_varint(data, at)
            fields[number], at = length, at + length
        elif kind == _STRUCT:
            fields[number], at = _read_struct(data, at)
        else:
            raise ValueError(f"field {number} of type {kind}")
    return fields, at + 1


def _read_integer(data: bytes, at: int) -> tuple[int, int]:
    value, at = _read_varint(data, at)
    return value >> 1 ^ -(value & 1), at


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
