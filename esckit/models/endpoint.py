"""A chat model behind an OpenAI-compatible server: typed replies or typed errors, never anything in between.

Chat servers treat seeds as best effort and cannot score given answers; some return the log-probabilities that
``next_token`` needs. Requests are carried by :mod:`esckit.models.transport`; their form and that of the answers is
:mod:`esckit.models.chat_api`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from esckit.errors import BackendError, ConfigError, EsckitError
from esckit.models.chat_api import Answer, ServerTaste, label_probabilities, parse_answer, sampling_fields
from esckit.models.retries import RetryPolicy
from esckit.models.transport import HttpFailure, Patience, Transport
from esckit.protocols import Capability
from esckit.registry import did_you_mean
from esckit.types import ChoiceScores, Message, NextToken, Reply, Sampling

log = logging.getLogger(__name__)

_CHAT = "/chat/completions"
# Once more, since some servers drop a kept connection after an error; bounded by the time limit of the check.
_BRIEFLY = RetryPolicy(max_retries=1, first_wait_s=0.2, max_wait_s=1.0)
_REFUSALS = (400, 422)
_N_MODELS_SHOWN = 8


class _ListedModel(BaseModel):
    id: str


class _ModelList(BaseModel):
    data: tuple[_ListedModel, ...]


class EndpointModel:
    """A model of an OpenAI-compatible server.

    Args:
        base_url: Address up to the API's version, without any secret.
        model: The server's id of the model.
        label: Name of the endpoint for provenance; the address if None.
        api_key_env: Name of the environment variable that holds the key; None if the server asks for none.
        log_probs: Whether the server returns log-probabilities; ``auto`` finds out in :meth:`check`.
        lacks: Sampling fields that the server is known to refuse.
        patience: Time limits, retries and concurrency.

    Raises:
        ConfigError: If the address is none, or the environment variable is missing or holds no key.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        label: str | None = None,
        api_key_env: str | None = None,
        log_probs: bool | Literal["auto"] = "auto",
        lacks: Sequence[str] = (),
        patience: Patience | None = None,
    ) -> None:
        self._transport = Transport(base_url, api_key_env, patience or Patience())
        self._model = model
        self._label = label or self._transport.base_url.partition("://")[2]
        self._key_env = api_key_env
        self._probes_log_probs = log_probs == "auto"
        self._offers_log_probs = log_probs is True
        self._taste = ServerTaste(lacks)
        self._notes: dict[str, str] = {}

    def __repr__(self) -> str:
        """Return the name; never the key."""
        return f"EndpointModel({self.name!r})"

    @property
    def name(self) -> str:
        """Endpoint and model id."""
        return f"{self._label}/{self._model}"

    @property
    def capabilities(self) -> frozenset[Capability]:
        """``next_token`` where log-probabilities are configured, or were found by :meth:`check`."""
        return frozenset({"next_token"}) if self._offers_log_probs else frozenset()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a manifest should say about this endpoint: fields of the recipe that the server does not take."""
        return tuple(self._notes.values())

    async def check(self) -> None:
        """Find out, in bounded time, whether the server can be used as configured.

        The server's list of models answers where it has one. Without it, or to learn whether there are
        log-probabilities, one token is asked for.

        Raises:
            ConfigError: If the server does not know the key or the model.
            BackendError: If there is no server, or it does not answer in time.
        """
        limit_s = self._transport.patience.check_s
        try:
            async with asyncio.timeout(limit_s):
                listed = await self._listed_models()
                if self._probes_log_probs or self._model not in listed:
                    await self._probe(listed)
        except TimeoutError:
            raise self._transport.silent(limit_s) from None

    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, seed: int) -> Reply:
        """Write the next assistant message; a blank one is returned as it is.

        Raises:
            BackendError: If no answer came, also after the retries, or it cannot be used.
            ConfigError: If the server does not know the key or the model.
        """
        answer = await self._ask(messages, sampling_fields(sampling, seed))
        text, stop_reason = answer.text()
        return Reply(text, stop_reason, answer.cost)

    async def score(
        self, messages: Sequence[Message], choices: Sequence[str], *, temperature: float = 1.0
    ) -> ChoiceScores:
        """Refuse: a chat server does not tell the probability of an answer that it did not write.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(f"{self.name} cannot score given answers", expected="readout: sampled, or a local model")

    async def next_token(
        self, messages: Sequence[Message], labels: Sequence[str], *, temperature: float = 1.0
    ) -> NextToken:
        """Return per label the probability that the server lists for it as the first token, 0 where it lists none.

        Exact at temperature 1, the temperature of the log-probabilities that servers return; otherwise see
        :func:`esckit.models.chat_api.label_probabilities`.

        Raises:
            ConfigError: If the server offers no log-probabilities, or the temperature is not positive.
            BackendError: If no answer with log-probabilities came.
        """
        if not self._offers_log_probs:
            raise ConfigError(f"{self.name} returns no log-probabilities", expected="readout: sampled")
        if temperature <= 0.0:
            raise ConfigError(f"temperature {temperature} for next_token", expected="a positive temperature")
        answer = await self._ask(messages, sampling_fields(Sampling(max_tokens=1), 0), log_probs=True)
        listed = answer.alternatives
        if not listed:
            raise BackendError(f"an answer of {self.name} without log-probabilities")
        probabilities, label_mass = label_probabilities(listed, labels, temperature)
        return NextToken(probabilities, label_mass, answer.cost)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()

    # ------------------------------------------------------------ inside

    async def _listed_models(self) -> tuple[str, ...]:
        """Return the ids that the server lists; none if it has no list or does not show it to this key."""
        try:
            text = await self._transport.get("/models", retries=_BRIEFLY)
            return tuple(model.id for model in _ModelList.model_validate_json(text).data)
        except ValidationError:
            return ()
        except HttpFailure as failure:
            if failure.status == 401:
                raise self._error(failure) from None
            return ()

    async def _probe(self, listed: Sequence[str]) -> None:
        """Ask for one token, with log-probabilities if it is open whether there are any."""
        fields = sampling_fields(Sampling(max_tokens=1), 0)
        try:
            answer = await self._negotiate(
                [Message("user", "Hello")], fields, log_probs=self._probes_log_probs, retries=_BRIEFLY
            )
        except HttpFailure as failure:
            # Some models refuse to stop after one token; being listed shows well enough that they are there.
            if failure.status in _REFUSALS and self._model in listed:
                return
            raise self._error(failure, listed) from None
        if self._probes_log_probs:
            self._offers_log_probs = bool(answer.alternatives)

    async def _ask(self, messages: Sequence[Message], fields: Mapping[str, Any], *, log_probs: bool = False) -> Answer:
        try:
            answer = await self._negotiate(messages, fields, log_probs=log_probs)
        except HttpFailure as failure:
            raise self._error(failure) from None
        for field in self._taste.left_out(fields):
            self._note(field)
        return answer

    async def _negotiate(
        self,
        messages: Sequence[Message],
        fields: Mapping[str, Any],
        *,
        log_probs: bool,
        retries: RetryPolicy | None = None,
    ) -> Answer:
        """Post a request, again without a field whenever the server refuses that field."""
        while True:
            body = self._taste.body(self._model, messages, fields, log_probs=log_probs)
            try:
                text = await self._transport.post(_CHAT, body, retries=retries)
            except HttpFailure as failure:
                if failure.status in _REFUSALS and self._taste.learn(body, failure.reason, failure.param):
                    continue
                raise
            return parse_answer(text)

    def _note(self, field: str) -> None:
        if field not in self._notes:
            self._notes[field] = f"{self.name} does not take {field}; its requests go without it"
            log.warning("%s", self._notes[field])

    def _error(self, failure: HttpFailure, listed: Sequence[str] = ()) -> EsckitError:
        """Return the error that a user sees for an HTTP failure."""
        if failure.status == 401:
            # What the server says here may repeat a part of the key.
            return ConfigError(
                f"{self._transport.base_url} does not accept the key (HTTP 401)",
                expected=f"a valid key in the environment variable {self._key_env}" if self._key_env else None,
                hint=None if self._key_env else "Name the variable that holds the key as api_key_env.",
            )
        if failure.status == 404:
            shown = ", ".join(listed[:_N_MODELS_SHOWN])
            return ConfigError(
                f"{self._transport.base_url} does not know the model {self._model!r}, or has no {_CHAT} (HTTP 404)",
                expected=f"one of {shown}" if shown else None,
                hint=did_you_mean(self._model, listed) or "Check base_url (it ends in /v1 for most servers) and model.",
            )
        error = BackendError(f"{self.name} answered with HTTP {failure.status}: {failure.reason}")
        error.attempts = failure.n_requests
        return error
