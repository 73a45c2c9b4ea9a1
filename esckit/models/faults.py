"""What a server sends besides answers: errors in many forms, times to wait, and perhaps the key it was given.

Servers agree on no form of error: ``{"error": {"message", "code"}}``, ``{"error": "…"}``, ``{"detail": …}``,
``{"message": …, "code": …}``, a web page, a stream of events, with an error status or in the body of a 200. All of
them become a :class:`Fault`. Pure functions of texts; requests are made in :mod:`esckit.models.transport`.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from html.entities import html5
from typing import Any, NamedTuple

_SHORTEST_SECRET = 8

_LONGEST_NAME = 16

STREAM_INSTEAD = 406
"""Status of the fault that is a stream of events in place of one answer."""

_MARK = "[key]"


class Redactor:
    """Replaces a secret by ``[key]``: as it is, escaped as in JSON, a URL or HTML, in hex, and inside Base64.

    Args:
        secret: Printable ASCII. Shorter ones than 8 characters are dummies such as ``EMPTY``: no secrets, and found
            everywhere.
    """

    __slots__ = ("_forms", "_pattern")

    def __init__(self, secret: str) -> None:
        self._pattern: re.Pattern[str] | None = None
        self._forms: tuple[str, ...] = ()
        if len(secret) >= _SHORTEST_SECRET:
            forms = (secret, *_in_base64(secret.encode()))
            written = ["".join(map(_escaped, text)) for text in forms]
            self._pattern = re.compile("|".join([*written, f"(?i:{secret.encode().hex()})"]))
            self._forms = (*(form.casefold() for form in forms), secret.encode().hex())

    def __repr__(self) -> str:
        """Return the name; the pattern holds the secret."""
        return "Redactor()"

    def __call__(self, text: str) -> str:
        """Return the text without the secret."""
        return self._pattern.sub(_MARK, text) if self._pattern and self._may_hold_it(text) else text

    def _may_hold_it(self, text: str) -> bool:
        """Return whether the text is worth the whole pattern, which takes a thousand times as long as this look."""
        if "%" in text or "&" in text:
            return True
        folded = text.casefold()
        looks = {folded, folded.replace("\\", ""), _BACKSLASHED.sub(_unescaped, folded)} if "\\" in text else {folded}
        return any(form in look for look in looks for form in self._forms)


def shown_name(name: str) -> str:
    """Return a name as messages may show it: of a long one the beginning, since it may be a key in a wrong place."""
    return name if name.isupper() or len(name) < _LONGEST_NAME else f"{name[:4]}…"


_BACKSLASHED = re.compile(r"\\+(?:u00([0-9a-f]{2})|u\{0{0,4}([0-9a-f]{1,2})\}|x([0-9a-f]{2}))?")


def _unescaped(found: re.Match[str]) -> str:
    """Return the character that an escape in lower case stands for, in lower case; backslashes alone stand for none."""
    code = found[1] or found[2] or found[3]
    return chr(int(code, 16)).casefold() if code else ""


def _escaped(char: str) -> str:
    """Return a pattern for a character that may be escaped, also more than once."""
    code = ord(char)
    names = "".join(f"|{re.escape(name)}" for name, meant in html5.items() if meant == char)
    forms = (
        rf"\\{{0,7}}{re.escape(char)}",
        rf"\\{{1,7}}(?i:u00{code:02x}|u\{{0{{0,4}}{code:x}\}}|x{code:02x})",
        rf"%(?:25){{0,3}}(?i:{code:02x})",
        rf"&(?:amp;){{0,3}}(?i:\#0{{0,4}}{code};?|\#x0{{0,4}}{code:x};?{names})",
    )
    return f"(?:{'|'.join(forms)})"


def _in_base64(secret: bytes) -> set[str]:
    """Return what Base64 of any text that holds the secret must hold, in both alphabets and at each of 3 alignments."""
    found = set()
    for n_before in range(3):
        encoded = base64.b64encode(bytes(n_before) + secret).decode().rstrip("=")
        # The first and the last characters also depend on what stands around the secret.
        first = (0, 2, 3)[n_before]
        last = len(encoded) - ((n_before + len(secret)) % 3 != 0)
        inner = encoded[first:last]
        found |= {inner, inner.translate(str.maketrans("+/", "-_"))}
    return found


def retry_after_s(headers: Mapping[str, str], *, now: datetime | None = None) -> float | None:
    """Return the seconds that a server asks to wait (milliseconds, seconds or a date), None if it names no time."""
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) * unit_s
        except ValueError:
            try:
                moment = parsedate_to_datetime(value)
                wait = moment.replace(tzinfo=moment.tzinfo or UTC) - (now or datetime.now(UTC))
            except (ValueError, OverflowError):  # also a year or a time zone beyond all calendars
                continue
            seconds = max(0.0, wait.total_seconds())
        if math.isfinite(seconds) and seconds >= 0.0:
            return seconds
    return None


BAD_GATEWAY = 502

_DEEPEST = 4

_STREAM = ("data:", "event:", "id:", "retry:", ":")

_STATUS_KEYS = ("code", "status", "status_code", "http_status", "http_code", "error_code", "errorCode", "statusCode")

_MESSAGE_KEYS = (
    *("message", "detail", "error_description", "msg", "status_msg", "error_msg", "errorMessage", "faultstring"),
    *("reason", "title"),
)

_INNER_KEYS = ("error", "errors", "Error", "fault", "detail", "base_resp")

_OUT_OF_CREDIT = re.compile(r"insufficient[\s_](?:quota|credit|balance|funds)|out of credits?\b", re.IGNORECASE)

_TOO_LONG = re.compile(
    r"context[\s_](?:length|window|size)|maximum context|prompt is too long|too many (?:input )?tokens"
    r"|reduce the length",
    re.IGNORECASE,
)

_STATUS = re.compile(r"[45]\d\d(?:\.0)?")

_BROKEN_OFF = re.compile(r"error|abort|cancel|fail|insufficient|interrupt|time.?out", re.IGNORECASE)

# Chat templates refuse roles with an exception, which some servers report as an error of their own.
_TEMPLATE = re.compile(
    r"\bjinja|chat.?template|template.?error|roles? must|role not supported|system (?:message|prompt|role)",
    re.IGNORECASE,
)

_FILTERED = re.compile(r"content[\s_-]?(?:filter|management|policy)|data_inspection|moderation", re.IGNORECASE)

# Which status the words of an error without one stand for; the first match counts.
_BY_WORDS = tuple(
    (status, re.compile(pattern, re.IGNORECASE))
    for status, pattern in (
        (
            429,
            r"rate.?limit|too many (?:concurrent )?requests|quota|throttl|concurrency|insufficient.balance|exhausted",
        ),
        (400, r"invalid.?(?:request|argument|value)|bad.?request|not.?support|unsupported|unrecogni[sz]ed|must be"),
        (400, r"extra.?(?:inputs?.|fields?.)?(?:forbidden|not permitted|not allowed)|value_error"),
        (400, r"cannot request more|context.length|unprocessable|validation|jinja|template|\broles?\b"),
        (503, r"overload|unavailable|capacity|busy|loading|again|retry|upstream|gateway|time.?out|timed out|internal"),
        (401, r"api.?key|unauthori[sz]ed|authenticat|credential"),
        (403, r"forbidden|permission|access denied"),
        (404, r"not.?found|not exist|unknown model|no such"),
    )
)


@dataclass(frozen=True, slots=True)
class Fault:
    """What a server sent in place of an answer.

    Attributes:
        status: The HTTP status that it stands for, 300 to 599.
        reason: The server's words on one line.
        code: The word under which the server keeps such errors, if it has one.
        param: The request field that it names, if it does.
        is_answer: False if the body cannot be read at all, not even as an error of the server.
    """

    status: int
    reason: str
    code: str | None = None
    param: str | None = None
    is_answer: bool = True

    @property
    def kind(self) -> str:
        """The word under which the failure is counted."""
        words = f"{self.code} {self.reason}"
        if not self.is_answer:
            return "unreadable"
        if self.status == 402 or (self.status in (403, 429) and _OUT_OF_CREDIT.search(words)):
            return "quota"
        if self.status < 500 and _FILTERED.search(words):
            return "content_filter"
        if self.status in (400, 413, 422) and _TOO_LONG.search(words):
            return "too_long"
        by_status = {401: "no_access", 403: "no_access", 404: "not_found", 405: "not_found"}
        by_status |= {408: "timeout", 409: "server_error", 429: "rate_limit", 504: "timeout"}
        if self.status in by_status:
            return by_status[self.status]
        return "server_error" if self.status >= 500 else "redirect" if self.status < 400 else "bad_request"

    @property
    def may_pass(self) -> bool:
        """Whether the same request may succeed later; an account without credit will not."""
        return (self.status in (408, 409, 425, 429) or self.status >= 500) and self.kind != "quota"


def fault_of(status: int, body: str, phrase: str = "") -> Fault:
    """Return what an answer with an error status says.

    Args:
        status: The HTTP status.
        body: The body as text.
        phrase: What to show if the body is blank.
    """
    parts = _parts(_json(body))
    reason = parts.message or _page_words(body) or phrase
    return parts.fault(400 if status == 500 and _TEMPLATE.search(reason) else status, reason)


def fault_in(body: str) -> Fault | None:
    """Return the error that the body of a successful answer holds in place of a completion, None if it holds none."""
    text = body.strip().removeprefix("\ufeff").lstrip()
    if text.startswith(_STREAM):
        events = [_json(line.removeprefix("data:")) for line in text.splitlines() if line.startswith("data:")]
        faults = [_object_fault(event) for event in events if isinstance(event, Mapping)]
        streamed = [fault for fault in faults if fault is not None and fault.is_answer]
        # Asking again would bring another stream.
        return (
            streamed[0]
            if streamed
            else Fault(STREAM_INSTEAD, "a stream of events in place of one answer", is_answer=False)
        )
    if text.startswith("<"):
        number = re.search(r"\b([45]\d\d)\b", _page_words(text)[:200])
        return Fault(int(number[1]) if number else BAD_GATEWAY, f"a web page: {_page_words(text)}", is_answer=False)
    data = _json(text)
    # Gemini's server puts its errors into a list.
    if isinstance(data, list) and len(data) == 1 and isinstance(data[0], Mapping) and "choices" not in data[0]:
        data = data[0]
    if isinstance(data, Mapping):
        return _object_fault(data)
    words = data if isinstance(data, str) else text
    if (status := _status_of(words)) and not text.startswith(("{", "[")):
        return Fault(status, _one_line(words))
    return Fault(BAD_GATEWAY, f"no JSON object: {_one_line(text) or 'nothing'}", is_answer=False)


class _Parts(NamedTuple):
    """The parts of an error object."""

    message: str = ""
    code: str | None = None
    param: str | None = None
    status: int | None = None

    def fault(self, status: int, reason: str) -> Fault:
        """Return the error as a fault."""
        return Fault(status, reason + (f" ({self.code})" if self.code else ""), self.code, self.param)


def _object_fault(data: Mapping[str, Any]) -> Fault | None:
    """Return the error that a JSON object is or holds, also inside its first choice."""
    choices = data.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    if isinstance(first, Mapping) and not _says_something(data.get("error")):
        if _says_something(first.get("error")):
            return _object_fault({"error": first["error"]})
        is_broken_off = isinstance(word := first.get("finish_reason"), str) and _BROKEN_OFF.search(word)
        return Fault(BAD_GATEWAY, f"an answer that broke off (finish_reason {word!r})") if is_broken_off else None
    parts = _parts(data)
    reason = parts.message or _dumped(data)
    if not parts.message and not any(_says_something(data.get(key)) for key in _INNER_KEYS):
        return Fault(BAD_GATEWAY, f"no choices: {reason}", is_answer=False)
    return parts.fault(parts.status or _status_of(f"{parts.code} {reason}") or 500, reason)


def _status_of(words: str) -> int | None:
    """Return the status that the words of an error stand for, None if they are unknown."""
    return next((status for status, known in _BY_WORDS if known.search(words)), None)


def _parts(data: Any, depth: int = 0) -> _Parts:
    """Return the parts of an error, looked for in its inner object first."""
    if depth > _DEEPEST:
        return _Parts()
    if isinstance(data, str):
        return _Parts(_one_line(data))
    if isinstance(data, list):
        # What validators say: one object an error, with the place of the field.
        first = data[0] if data and isinstance(data[0], Mapping) else {}
        if "loc" not in first and len(data) == 1:
            return _parts(first, depth + 1)
        place = first.get("loc")
        param = str(place[-1]) if isinstance(place, list) and place else None
        return _parts(first, depth + 1)._replace(message=_dumped(data), param=param)
    if not isinstance(data, Mapping):
        return _Parts()
    inner = next((_parts(data[key], depth + 1) for key in _INNER_KEYS if _says_something(data.get(key))), _Parts())
    texts = (data[key] for key in _MESSAGE_KEYS if isinstance(data.get(key), str) and data[key].strip())
    message = inner.message or _one_line(next(texts, ""))
    codes = [data[key] for key in ("code", "type", *_STATUS_KEYS) if isinstance(data.get(key), str | int | float)]
    words = [code for code in codes if isinstance(code, str) and not code.isdigit() and code != "error"]
    param = data.get("param")
    return _Parts(
        message,
        inner.code or next(iter(words), None),
        inner.param or (param if isinstance(param, str) else None),
        inner.status or next((int(float(code)) for code in codes if _STATUS.fullmatch(str(code))), None),
    )


def _says_something(value: Any) -> bool:
    """Return whether the error field of an answer holds an error: some servers fill it with nothing, or with code 0."""
    return any(value.values()) if isinstance(value, Mapping) else bool(value)


def _json(text: str) -> Any:
    """Return the JSON value of a text, None if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _dumped(value: Any) -> str:
    try:
        return _one_line(json.dumps(value, ensure_ascii=False))
    except RecursionError:
        return "deeply nested JSON"


def _page_words(body: str) -> str:
    """Return the words of a web page, its title first; of any other text all of it, on one line."""
    if not body.lstrip().startswith("<"):
        return _one_line(body)
    without = re.sub(r"<(script|style)\b.*?</\1\s*>", " ", body[:20_000], flags=re.IGNORECASE | re.DOTALL)
    return _one_line(re.sub(r"<[^<>]*>", " ", without))


def _one_line(text: str) -> str:
    # Half a surrogate pair, as JSON may spell it, can be written to no file.
    return " ".join(text.encode("utf-8", "replace").decode().split())
