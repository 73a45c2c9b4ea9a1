"""Text of dialogues: words and lines, speaker labels, control strings, normalised text, ids, and words for messages.

Words and sentence ends are found in any script; Chinese, Japanese, Thai and their like write no spaces between words,
so there every character counts as a word. Line ends and speaker labels are defined once, for cleaning a reply and for
rendering turns, so that no turn can hold a line that reads as another speaker's. Control strings are what a tokenizer
reads as the end of a turn or as a role: dialogue text must not leave its turn, so each is broken up by a space before
it is rendered. Text without such a string keeps its tokens. Messages show little of a text, and nothing unprintable.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import sha256
from typing import Any

from esckit.types import Dialogue, Message, Speaker

TOKENIZER = "words_and_characters/1"
"""Name of :func:`tokenise`: lower-cased words and punctuation marks; single characters in scripts without spaces."""


_SPACELESS = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Tibetan, Burmese, Khmer
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3040-\u30ff\u3100-\u312f\u31f0-\u31ff"  # radicals, kana, bopomofo
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003ffff"  # Han, half-width kana
)

_MARKS = "\u3000-\u3004\u3008-\u3020\u3030-\u303f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"

# Accents, vowel signs and joiners, which belong to their word: "\w" knows letters and digits only.
_SIGNS = (
    "\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7"  # Latin to Hebrew
    "\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e8\u06ea-\u06ed\u0711\u0730-\u074a"  # Arabic, Syriac
    "\u0900-\u0963\u0966-\u096f\u0971-\u0df3\u200c\u200d"  # Devanagari to Sinhala
)

_TOKEN = re.compile(rf"[{_SPACELESS}]|(?:[^\W{_SPACELESS}]|[{_SIGNS}])+|[^\w\s]")

_WORD = re.compile(rf"[{_SPACELESS}]|[^\s{_SPACELESS}{_MARKS}]+")

_SURROGATE = re.compile("[\ud800-\udfff]")

_CHARACTER = re.compile(f"[{_SPACELESS}]")

_SENTENCES = re.compile(r"^.*(?:[.!?…؟۔।॥։።][\"'”’)»]*(?=\s|$)|[。！？｡။។][\"'”’)」』）]*)", re.DOTALL)


def without_surrogates(text: str) -> str:
    """Return the text with U+FFFD for every lone surrogate, which UTF-8 cannot hold."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def tokenise(text: str) -> tuple[str, ...]:
    """Return lower-cased words and single punctuation marks; a typographic apostrophe counts as a plain one."""
    return tuple(_TOKEN.findall(text.replace("\u2019", "'").lower()))


def n_words(text: str) -> int:
    """Return the number of blank-separated words; in a script without spaces every character is one."""
    return sum(1 for _ in _WORD.finditer(text))


def is_spaceless(token: str) -> bool:
    """Return whether a token is a character of a script without spaces."""
    return bool(_CHARACTER.fullmatch(token))


def whole_sentences(text: str) -> str:
    """Return a text without its unfinished last sentence; the text itself if that is its only one."""
    found = _SENTENCES.match(text.rstrip())
    return found.group(0) if found else text


# One set of characters in front, which Python looks for several times as fast as for two alternatives.
LINE_END = re.compile("[\n\r\v\f\x85\u2028\u2029](?:(?<=\r)\n)?")


_NAMES: dict[Speaker, str] = {
    "seeker": r"patient|(?:help[- ]?)?seeker|client|user|human|求助者|来访者|患者|病人|用户",
    "supporter": r"therapist|supporter|helper|counsell?or|assistant|ai|支持者|帮助者|咨询师|治疗师|助手",
}

_OTHERS = r"system|系统"

# All counts are bounded, or never tried again, so that a label is found or not in linear time.
_LABEL = (
    r"\s*+(?:[\W_]{{1,16}})?(?:(?:\d{{1,2}}|[a-z])[.)][\W_]{{0,8}})?(?:{names})"
    r"(?:\s?#?\d{{1,2}})?(?:\s?[\[(【][^\[\]()【】\n]{{1,40}}[\])】])?[\W_]{{0,6}}?[:﹕︓∶꞉][*_]{{0,3}}"
)

# As narrow characters, one for one.
_NARROW = {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)}


def _label(*names: str) -> re.Pattern[str]:
    return re.compile(_LABEL.format(names="|".join(names)), re.IGNORECASE)


_LABEL_OF = {speaker: _label(names) for speaker, names in _NAMES.items()}

_ANY_LABEL = _label(*_NAMES.values(), _OTHERS)


_HEADING = re.compile(r"[\s*#_`]{0,16}([^\W_][^\n{}:]{0,60}?)[\s*_`]{0,6}:")


def lines_of(text: str) -> list[str]:
    """Return the lines of a text, without their ends."""
    # Most turns are one line: splitlines, which knows more ends, shows that much faster.
    return [text] if text.splitlines() in ([text], []) else LINE_END.split(text)


def starts_with_label(text: str) -> bool:
    """Return whether a line starts with the label of a speaker."""
    return bool(_ANY_LABEL.match(text.translate(_NARROW)))


def without_label(text: str, speaker: Speaker) -> str:
    """Return a line without a label of this speaker before it."""
    label = _LABEL_OF[speaker].match(text.translate(_NARROW))
    return text[label.end() :].lstrip() if label else text


@lru_cache(maxsize=256)
def opens_a_part_of(prompt: str) -> Callable[[str], bool]:
    """Return a test whether a line begins as a line of a prompt that opens a part of it (``Reply 1:``).

    Labels of speakers open none: a prompt may show them, and transcripts that are filled in consist of them.
    """
    opening = (line for line in lines_of(prompt) if not starts_with_label(line))
    headings = {found[1].casefold() for line in opening if (found := _HEADING.match(line.translate(_NARROW)))}

    def opens(line: str) -> bool:
        found = _HEADING.match(line.translate(_NARROW))
        return found is not None and found[1].casefold() in headings

    return opens


QUOTED = "(quoted)"
"""Stands before a line that would read as a heading or as a turn, and cannot be joined to a line before it."""


def as_turn(text: str, is_label: Callable[[str], bool] = starts_with_label) -> str:
    """Return a turn's text as it may stand behind a label: a line of it that starts with a label goes on instead.

    A text of which no line but the first starts with a label stays as it is.

    Args:
        text: The utterance.
        is_label: Which lines start with a label.
    """
    first, *rest = lines_of(text)
    if not any(map(is_label, rest)):
        return text
    pieces = [first]
    for line in rest:
        if not is_label(line):
            pieces.append(f"\n{line}")
            continue
        while len(pieces) > 1 and not pieces[-1].strip():
            pieces.pop()
        pieces.append(f" {line.lstrip()}")
    return "".join(pieces)


log = logging.getLogger(__name__)


REASONING_TAGS = frozenset({"<think>", "</think>"})
"""Tags of RLFF-ESC's output form; instructions and outputs hold them, and they are no control strings there."""


def _without_accents(text: str) -> str:
    return "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))


_FOLDS: tuple[Callable[[str], str], ...] = (partial(unicodedata.normalize, "NFKC"), _without_accents, str.lower)
"""What tokenizers do to a text before they look for their tokens, the mildest first."""


class Controls:
    """The control strings of one tokenizer, or of all formats that a server may use.

    Args:
        strings: What to break up; strings of white space alone are left out.
        normalised: What a tokenizer makes of a text before it looks for them, if it does: ``＜think＞`` can become
            ``<think>``.

    Attributes:
        n_broken: How often one was broken up so far.
    """

    def __init__(self, strings: Iterable[str], normalised: Callable[[str], str] | None = None) -> None:
        self._normalised = normalised
        by_start: dict[str, list[str]] = {}
        for string in sorted({string for string in strings if string.strip(" \t\r\n\u2581")}, key=len, reverse=True):
            by_start.setdefault(string[0], []).append(string)
        self._by_start = {start: tuple(found) for start, found in by_start.items()}
        self.n_broken = 0

    @classmethod
    def of(cls, tokenizer: Any, *, without: Iterable[str] = ()) -> Controls:
        """Return those of a tokenizer: every special or added token that is more than white space.

        Args:
            tokenizer: A transformers tokenizer.
            without: Added tokens that are no control strings where they are ordinary text to the tokenizer.
        """
        added = tokenizer.added_tokens_decoder.values()
        strings = {str(token) for token in added if token.special} | ({str(token) for token in added} - set(without))
        if not (
            getattr(tokenizer, "is_fast", False)
            and tokenizer.backend_tokenizer.normalizer
            and any(one.normalized for one in added)
        ):
            return cls(strings)
        return cls(strings, tokenizer.backend_tokenizer.normalizer.normalize_str)

    def found(self, text: str) -> list[str]:
        """Return the control strings in a text, in order; of those that overlap the first, and of those the longest."""
        found: list[str] = []
        self._broken(text, found)
        return found

    def neutralise(self, text: str) -> str:
        """Return a text in which each control string has a space behind its first character, or lacks that one.

        A text that has one only after the tokenizer's normalisation is folded, as far as that takes, and then broken.
        """
        found: list[str] = []
        if self._normalised is not None:
            for fold in _FOLDS:
                if len(self.found(self._normalised(text))) <= len(self.found(text)):
                    break
                text = fold(text)
        while (broken := self._broken(text, found)) != text:
            text = broken
        if found:
            if not self.n_broken:
                log.warning("text of a dialogue holds the control string %r; such strings are broken up", found[0])
            self.n_broken += len(found)
        return text

    def _broken(self, text: str, found: list[str]) -> str:
        starts = [start for start in self._by_start if start in text]
        if not starts:
            return text
        pieces, done = [], 0
        for match in re.finditer(f"[{re.escape(''.join(starts))}]", text):
            index, strings = match.start(), self._by_start[match[0]]
            if index < done or not text.startswith(strings, index):
                continue
            string = next(string for string in strings if text.startswith(string, index))
            found.append(string)
            # Behind a character that white space follows a space might change nothing.
            first = "" if string[1:2].strip() == "" else string[0]
            pieces += [text[done:index], first, " ", string[1:]]
            done = index + len(string)
        return "".join([*pieces, text[done:]])


@dataclass(frozen=True)
class MessageGuard:
    """Breaks up control strings in the contents of chat messages.

    The tags of RLFF-ESC's form stay in system and assistant messages, which give and keep to that form.

    Attributes:
        dialogue: Control strings in user messages.
        form: Those in system and assistant messages.
    """

    dialogue: Controls
    form: Controls

    @classmethod
    def of(cls, tokenizer: Any) -> MessageGuard:
        """Return the guard of a tokenizer."""
        return cls(Controls.of(tokenizer), Controls.of(tokenizer, without=REASONING_TAGS))

    @classmethod
    def of_any_format(cls) -> MessageGuard:
        """Return the guard for a server, whose chat format nobody knows."""
        folded = _FOLDS[0]
        return cls(Controls(ANY_FORMAT, folded), Controls(set(ANY_FORMAT) - REASONING_TAGS, folded))

    @property
    def n_broken(self) -> int:
        """How many control strings were broken up so far."""
        return self.dialogue.n_broken + self.form.n_broken

    def __call__(self, message: Message) -> Message:
        """Return a message that no control string leaves its turn through; the message itself if it holds none."""
        controls = self.dialogue if message.role == "user" else self.form
        content = controls.neutralise(message.content)
        return message if content is message.content else Message(message.role, content)


# One block reads better than a list of a hundred lines.
_FORMATS = """
<|im_start|> <|im_end|> <|im_sep|> <|endoftext|> <|startoftext|> <|end_of_text|> <|begin_of_text|> <|eot_id|> <|eom_id|>
<|start_header_id|> <|end_header_id|> <|header_start|> <|header_end|> <|eot|> <|python_tag|> <start_of_turn>
<end_of_turn> <|turn> <turn|> <|channel> <channel|> <|think|> <bos> <eos> <pad> <unk> <s> </s> [INST] [/INST] <<SYS>>
<</SYS>> [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_CALLS] [TOOL_RESULTS]
[/TOOL_RESULTS] [THINK] [/THINK] <|start|> <|end|> <|message|> <|channel|> <|return|> <|call|> <|constrain|> <|system|>
<|user|> <|assistant|> <|observation|> <|tool|> <|endofprompt|> <|START_OF_TURN_TOKEN|> <|END_OF_TURN_TOKEN|>
<|SYSTEM_TOKEN|> <|USER_TOKEN|> <|CHATBOT_TOKEN|> <|START_THINKING|> <|END_THINKING|> <|START_RESPONSE|>
<|END_RESPONSE|> <BOS_TOKEN> <EOS_TOKEN> <|start_of_role|> <|end_of_role|> <|role_start|> <|role_end|> [gMASK] <sop>
<eop> [BOS] [EOS] <\uff5cbegin\u2581of\u2581sentence\uff5c> <\uff5cend\u2581of\u2581sentence\uff5c> <\uff5cUser\uff5c>
<\uff5cAssistant\uff5c> <seed:bos> <seed:eos> <tool_call> </tool_call> <tool_response> </tool_response>
<|im_user|> <|im_system|> <|im_assistant|> <|im_middle|> [|system|] [|user|] [|assistant|] [|endofturn|] <|endofturn|>
<|stop|> <extra_id_0> <extra_id_1> <|User|> <|Assistant|> <|user_start|> <|user_end|> <|system_start|> <|system_end|>
<|assistant_start|> <|assistant_end|> <|turn_start|> <|turn_end|> <|inner_prefix|> <|inner_suffix|> <longcat_user>
<longcat_assistant> <reserved_102> <reserved_103> <reserved_106> <reserved_107> <|tool_call|> <|file_sep|>
<|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|vision_start|> <|vision_end|> <|image_pad|> <|image|>
<start_of_image> <end_of_image>
""".split()  # noqa: SIM905

ANY_FORMAT = (*_FORMATS, *sorted(REASONING_TAGS))
"""Control strings of the chat formats that servers use: ChatML, Llama, Gemma, Mistral, harmony, Phi, GLM, Kimi …"""


# Category Cc without what `str.split` takes for white space.
_CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")

_COMPUTED_ID = re.compile(r"[a-z]+-([0-9a-f]{12})")

_MAX_QUOTED = 60


NOTHING = object()
"""Stands for the value of a key that an object lacks, where ``None`` would mean a JSON null."""


def normalise(raw: str) -> tuple[str, tuple[str, ...]]:
    """Return a text field normalised, and the codes of what was changed.

    Lone surrogates become U+FFFD, control characters that are not white space go, every run of white space becomes one
    space and the ends are trimmed. Case, quotes, emoji and Unicode form stay.
    """
    # Printable text has no surrogate, no control character, and no white space but plain spaces.
    if raw.isprintable() and "  " not in raw and raw.strip() == raw:
        return raw, ()
    codes = []
    text = without_surrogates(raw)
    if text != raw:
        codes.append("surrogate")
    cleaned = _CONTROL.sub("", text)
    if cleaned != text:
        codes.append("control_character")
    spaced = " ".join(cleaned.split())
    if spaced != cleaned:
        codes.append("white_space")
    return spaced, tuple(codes)


def dialogue_id(corpus: str, utterances: Iterable[tuple[str, str]]) -> str:
    """Return ``<corpus>-`` and 12 hex digits over the (speaker, text) pairs of the kept, unmerged turns.

    Labels, surveys, situation, file and position do not enter: one dialogue has one id in every layout and option.
    """
    lines = "\n".join(f"{speaker}\t{text}" for speaker, text in utterances)
    return f"{corpus}-{sha256(lines.encode()).hexdigest()[:12]}"


def ids_digest(dialogues: Iterable[Dialogue]) -> str:
    """Return the hex SHA-256 over the sorted ids (their 12 digits where computed), joined by line ends."""
    parts = []
    for dialogue in dialogues:
        computed = _COMPUTED_ID.fullmatch(dialogue.id)
        parts.append(computed.group(1) if computed else dialogue.id)
    return sha256("\n".join(sorted(parts)).encode()).hexdigest()


def quoted(value: str) -> str:
    """Return a key, label or word in quotes: at most 60 characters, what cannot be printed escaped."""
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in value[: _MAX_QUOTED + 1])
    if len(shown) > _MAX_QUOTED:
        shown = shown[: _MAX_QUOTED - 1] + "…"
    return f"'{shown}'"


def listed(words: Iterable[str], *, limit: int = 10) -> str:
    """Return words in quotes, joined by commas; beyond the limit only their number."""
    all_words = list(words)
    shown = ", ".join(quoted(word) for word in all_words[:limit])
    more = len(all_words) - limit
    return f"{shown} and {more} more" if more > 0 else shown or "none"


# Behind a separator too: a spreadsheet that expects another one than the file has splits its cells there.
_FORMULA = re.compile(r"(?:^|(?<=[\n\r\t;,]))(?=[=+@\t\r]|-(?!\)))")


def without_formulas(cell: str) -> str:
    """Return a text with a space before whatever a spreadsheet would take for a formula; ``;-)`` stays as it is."""
    return _FORMULA.sub(" ", cell)


def json_type(value: Any) -> str:
    """Return the JSON type of a parsed value with its article: ``an array``, ``null``, ``nothing``."""
    if value is NOTHING:
        return "nothing"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, Mapping):
        return "an object"
    return "an array" if isinstance(value, list | tuple) else f"a value of type {type(value).__name__}"
