"""Dialogues for tests: short ones written out, and any that hypothesis can think of."""

from pathlib import Path

import pytest
from hypothesis import strategies as st

from esckit.data.corpus import Corpus, CorpusFile
from esckit.text import dialogue_id, normalise
from esckit.types import Dialogue, Scenario, Source, Turn

SPEAKERS = {"s": "seeker", "c": "supporter"}


def turn(code: str, text: str, strategy: str | None = None, feedback: int | None = None) -> Turn:
    """Return a turn; ``s`` is the seeker, ``c`` the supporter."""
    return Turn.model_validate(
        {"speaker": SPEAKERS[code], "text": text, "source_strategy": strategy, "feedback": feedback}
    )


def dialogue(*turns: Turn, situation: str = "", split: str | None = None, record: int = 0) -> Dialogue:
    """Return a dialogue with its computed id."""
    return Dialogue(
        scenario=Scenario(id=dialogue_id("esconv", ((t.speaker, t.text) for t in turns)), situation=situation),
        turns=turns,
        source=Source(corpus="esconv", format="esconv", file="some.json", record=record, split=split),
    )


def corpus(dialogues: list[Dialogue]) -> Corpus:
    """Return a corpus of one file."""
    file = CorpusFile(name="some.json", sha256="0" * 64, split=None, n_records=len(dialogues))
    return Corpus("some.json", "esconv", tuple(dialogues), (file,), (), len(dialogues), 0)


def real(corpora: Path, name: str) -> Path:
    """Return a file or folder of the real corpora; the test is skipped where it is absent."""
    if not (corpora / name).exists():
        pytest.skip("real corpora not found: set ESCKIT_DATA (see docs/data.md)")
    return corpora / name


LABELS = ("Question", "Others", "Information")
texts = st.text(max_size=20).map(lambda raw: normalise(raw)[0]).filter(bool)
seeker_turns = st.builds(
    Turn, speaker=st.just("seeker"), text=texts, feedback=st.none() | st.integers(min_value=1, max_value=5)
)
supporter_turns = st.builds(
    Turn, speaker=st.just("supporter"), text=texts, source_strategy=st.none() | st.sampled_from(LABELS)
)
dialogues = st.builds(
    lambda turns, situation: dialogue(*turns, situation=situation),
    st.lists(seeker_turns | supporter_turns, min_size=1, max_size=12),
    texts | st.just(""),
)
