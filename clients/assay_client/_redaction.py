"""Remove a credential from texts that a server has sent: a gateway may repeat the headers of a request."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from assay_client.errors import InvalidAnswer

T = TypeVar("T")
SHOWN = "[API key]"
# The texts of an error, in an error body and in the row of an item.
ERROR_TEXTS = ("code", "message", "param", "detail")


@dataclass(frozen=True)
class Redaction:
    """The removal of one credential; without one, texts stay as they are. Its repr does not have the credential.

    The credential is found as it is, and as JSON and Python's `repr` write it with escapes.
    """

    pattern: re.Pattern[str] | None = None

    @classmethod
    def of(cls, api_key: str | None, headers: Mapping[str, str] | None = None) -> "Redaction":
        """Return the redaction of an API key, or of the credential in an Authorization among the caller's headers."""
        given = {name.lower(): value for name, value in (headers or {}).items()}.get("authorization", "")
        secret = api_key or given.partition(" ")[2].strip() or given
        return cls(re.compile("".join(map(_match_character, secret))) if secret else None)

    def __repr__(self) -> str:
        return f"Redaction({'nothing' if self.pattern is None else SHOWN})"

    def redact(self, text: str) -> str:
        """Return a text without the credential. Redact before a text is cut: a part would not be found."""
        return text if self.pattern is None else self.pattern.sub(SHOWN, text)

    def is_in(self, text: str) -> bool:
        """Return whether a text has the credential."""
        return self.pattern is not None and self.pattern.search(text) is not None

    def redact_errors(self, body: bytes) -> bytes:
        """Return a JSON body whose errors do not have the credential, and whose other values are as they were.

        Only errors, because a short credential such as "test" may be a part of a name or an id.
        """
        text = body.decode(errors="replace")
        if not self.is_in(text):
            return body
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            return body
        return json.dumps(self._redact_value(value)).encode()

    def _redact_value(self, value: Any) -> Any:  # noqa: ANN401 - any JSON value
        if isinstance(value, list):
            return [self._redact_value(part) for part in value]
        if not isinstance(value, dict):
            return value
        is_error = isinstance(value.get("message"), str)
        return {
            name: self.redact(part)
            if is_error and name in ERROR_TEXTS and isinstance(part, str)
            else self._redact_value(part)
            for name, part in value.items()
        }


NOTHING = Redaction()


def convert(parse: Callable[[bytes], T], redaction: Redaction, body: bytes) -> T:
    """Return what `parse` makes of an answer, whose errors do not have the credential.

    Raises:
        InvalidAnswer: `parse` refused the answer. Its message shows nothing of an answer that has the credential,
            because it may show a part of it.
    """
    try:
        return parse(redaction.redact_errors(body))
    except InvalidAnswer:
        if not redaction.is_in(body.decode(errors="replace")):
            raise
    raise InvalidAnswer("the answer breaks the wire format; it repeats the API key, so that nothing of it is shown")


def _match_character(character: str) -> str:
    code = "".join(f"[{digit}{digit.upper()}]" for digit in f"{ord(character):04x}")
    return rf"(?:\\?{re.escape(character)}|\\u{code})"
