"""Read JSON of which nothing may be lost: no key twice, no number or text that cannot be written again."""

import json
import math


class Unreadable(Exception):
    """An error in a file; its text begins with the place."""


class _RepeatedKey(Exception):
    """An error that an object has a key twice; its text is the key."""


def _refuse_repeated_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return the object of some pairs; raise _RepeatedKey where Python's reader would silently keep the last value."""
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise _RepeatedKey(next(name for name in names if names.count(name) > 1))
    return row


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


def _read_float(text: str) -> float:
    if math.isinf(number := float(text)):  # the output could not hold it
        raise ValueError("a number is too large for a float of 64 bits")
    return number


_DECODER = json.JSONDecoder(
    object_pairs_hook=_refuse_repeated_keys, parse_constant=_refuse_constant, parse_float=_read_float
)


def parse_json(text: bytes, where: str) -> object:
    """Return the value of a JSON text.

    Args:
        text: JSON in UTF-8.
        where: place of the text in its file, for errors.

    Raises:
        Unreadable: the text is not JSON, or holds a key twice, a number too large or a lone surrogate.
    """
    try:
        value: object = _DECODER.decode(text.decode("utf-8-sig"))
        if b"\\ud" in text or b"\\uD" in text:  # half of a surrogate pair has no UTF-8 form, and cannot be sent
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeDecodeError as error:
        raise Unreadable(f"{where}: not UTF-8: {error.reason}") from error
    except UnicodeEncodeError as error:
        raise Unreadable(f"{where}: a text holds a lone surrogate, which is not valid Unicode") from error
    except _RepeatedKey as error:
        raise Unreadable(f"{where}: key `{error}` occurs twice, and one of its values would be lost") from error
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"{where}: not JSON: {error}") from error
