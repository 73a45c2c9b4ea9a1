"""A chat model behind an OpenAI-compatible server: typed replies or typed errors, never anything in between.

Chat servers treat seeds as best effort. Some return the log-probabilities that ``next_token`` needs, and a few (vLLM)
those of the prompt, by which ``score`` rates given answers. Requests are carried by :mod:`esckit.models.transport`;
what they and their answers look like is in :mod:`esckit.models.chat_api`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from esckit.errors import BackendError, ConfigError, EsckitError
from esckit.models.answer_form import PROBES, AnswerForm, PromptToken
from esckit.models.chat_api import AcceptedFields, Answer, label_probabilities, parse_answer, sampling_fields
from esckit.models.events import STREAMED
from esckit.models.streaming import listener
from esckit.models.transport import HttpFailure, Timeouts, Transport
from esckit.protocols import Capability
from esckit.registry import did_you_mean
from esckit.text import MessageGuard
from esckit.types import ChoiceScore, ChoiceScores, Message, NextToken, Replies, Reply, Sampling, Usage

if TYPE_CHECKING:
    from esckit.models.server import Server

log = logging.getLogger(__name__)


T = TypeVar("T")

_ONE_TOKEN = sampling_fields(Sampling(max_tokens=1), 0)

_GREETING = (Message("user", "Hello"),)

# Fields of vLLM: every token of the prompt with its log-probability, and none beside it.
_BEGUN = {"prompt_logprobs": 0}

_N_TRIED = 8

_ANSWERED = {"prompt_logprobs": 0, "add_generation_prompt": False}

_CHAT = "/chat/completions"

_REFUSALS = (400, 422)

_WRONG_KEY, _WRONG_MODEL = 401, 404

_NO_CHAT = (405, 501)
"""What servers of other things, such as files or pages, say to a chat request."""

_COMPATIBLE = "a server with an OpenAI-compatible interface"

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
        lacks: Sampling fields that the server is known to refuse.
        timeouts: Time limits, retries and concurrency; None takes the defaults.
        server: The server, if this run starts it: the check of the model starts it first.

    Attributes:
        reports_usage: False once the check found that the server does not report what a call used.

    Raises:
        ConfigError: If the address cannot be used, or the environment variable is missing or holds no key.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        label: str | None = None,
        api_key_env: str | None = None,
        lacks: Sequence[str] = (),
        timeouts: Timeouts | None = None,
        server: Server | None = None,
    ) -> None:
        self._transport = Transport(
            base_url, api_key_env, timeouts or Timeouts(), None if server is None else server.outage
        )
        self._server = server
        self._model = model
        self.name = f"{label or self._transport.base_url.partition('://')[2]}/{model}"
        self._key_env = api_key_env
        self._where = "base_url (it ends in /v1 for most servers) and model" if server is None else "model and serve"
        self.capabilities: frozenset[Capability] = frozenset()
        self.reports_usage = True
        self._accepted = AcceptedFields(lacks)
        self._guard = MessageGuard.of_any_format()
        self._form: AnswerForm | None = None
        self._answers: dict[str, tuple[str, ...]] = {}
        self._trying_several = asyncio.Lock()
        self._draws_several = False
        self._streams = True
        self._notes: dict[str, str] = {}
        self._kinds_logged: set[str] = set()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a manifest should say about this endpoint: what the server does not take as it is."""
        n_broken = self._guard.n_broken
        broken = (f"{n_broken} control strings in what was sent to {self.name} were broken up",) if n_broken else ()
        return (*self._notes.values(), *broken)

    @property
    def in_flight(self) -> dict[str, int]:
        """How many requests were allowed in flight, for the manifest; see :mod:`esckit.models.limit`."""
        return self._transport.limit.facts()

    async def check(self) -> None:
        """Find out, in bounded time, whether the server can be used as configured; start it first if the run does so.

        The server's list of models is read, if it has one. Then one token is requested, also to learn whether answers
        come with log-probabilities, which ``next_token`` needs. A server that was just started may take long for that:
        esckit waits, with a warning, unless all that comes are errors. If a server that gives no answer lists the
        model, the check passes.

        Raises:
            ConfigError: If the server cannot be started, or does not know the key or the model.
            BackendError: If there is no server, or it does not answer in time.
        """
        if self._server is not None:
            await self._server.wait_until_ready(self._model)
        limit_s = self._transport.timeouts.check_s
        try:
            async with asyncio.timeout(limit_s):
                listed = await self._listed_models()
        except TimeoutError:
            raise self._transport.silent(limit_s) from None
        try:
            await self._probe(listed)
        except BackendError as error:
            if error.kind == "unreadable":
                error.expected, error.hint = _COMPATIBLE, f"Check {self._where}."
            if self._model not in listed:
                raise
            log.warning("%s lists the model, but whether it offers log-probabilities is unknown: %s", self.name, error)

    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, seed: int) -> Reply:
        """Write the next assistant message; a blank one is returned as it is.

        It comes as a stream of events if somebody listens, and the server does not refuse that.

        Raises:
            BackendError: If no answer came, also after the retries, or it cannot be used.
            ConfigError: If the server does not know the key or the model.
        """
        fields = sampling_fields(sampling, seed)

        def read(answer: Answer) -> Reply:
            return answer.reply(sampling.max_tokens)

        if listener() is not None and self._streams:
            try:
                return await self._ask(messages, fields, read, STREAMED)
            except BackendError as error:
                if error.kind != "bad_request":
                    raise
            reply = await self._ask(messages, fields, read)
            self._streams = False
            return reply
        return await self._ask(messages, fields, read)

    async def complete_several(self, messages: Sequence[Message], sampling: Sampling, *, seed: int, n: int) -> Replies:
        """Write ``n`` next assistant messages in one request; before the first, see if the server can.

        Raises:
            BackendError: If no answer came, also after the retries, or one of the messages cannot be used.
            ConfigError: If the server does not draw as many messages as are asked for, independent of each other.
        """
        async with self._trying_several:
            if not self._draws_several:
                await self._try_several()
                self._draws_several = True
        fields = sampling_fields(sampling, seed)
        return await self._ask(messages, fields, lambda answer: answer.replies(sampling.max_tokens, n), {"n": n})

    async def _try_several(self) -> None:
        """Have some sentences written at once, and refuse a server that returns another number, or one several times.

        Raises:
            BackendError: If no answer came.
            ConfigError: If the server cannot be used so.
        """
        fields = sampling_fields(Sampling(max_tokens=16), 0)
        try:
            answer = await self._answer([Message("user", "Write a sentence about anything.")], fields, {"n": _N_TRIED})
            found = f"{self.name} returned {len(answer.choices)} of {_N_TRIED} choices"
            if len(answer.choices) == _N_TRIED:
                if len({str(choice.message.get("content")) for choice in answer.choices}) > 1:
                    return
                found = f"{self.name} drew {_N_TRIED} equal choices"
        except BackendError as error:
            if error.kind != "bad_request":
                raise
            found = error.found
        raise ConfigError(found, expected="samples_as: null")

    async def score(
        self, messages: Sequence[Message], choices: Sequence[str], *, temperature: float = 1.0
    ) -> ChoiceScores:
        """Return per choice the log-probability of the assistant answering exactly it and ending its turn.

        Every choice is a request of its own: the conversation with the choice as its last message.

        Raises:
            ConfigError: If the server returns no log-probabilities of prompts, or the temperature is not 1.
            BackendError: If an answer failed, or the server's tokens are not as they were at the check.
        """
        form = self._form
        if form is None:
            raise ConfigError(f"{self.name} cannot score given answers", expected="readout: sampled, or a local model")
        if temperature != 1.0:
            raise ConfigError(f"{self.name} scores answers at temperature 1 only", expected="sampling.temperature: 1.0")
        results = await asyncio.gather(
            *(self._score(form, messages, choice) for choice in choices), return_exceptions=True
        )
        scored = [result for result in results if not isinstance(result, BaseException)]
        usage = Usage(
            calls=1,
            unknown_calls=int(any(used.unknown_calls for _, used in scored)),
            prompt_tokens=sum(used.prompt_tokens for _, used in scored),
            completion_tokens=sum(used.completion_tokens for _, used in scored),
        )
        for result in results:
            if isinstance(result, BackendError):
                result.billed = usage.model_dump()
            if isinstance(result, BaseException):
                raise result
        return ChoiceScores(tuple(score for score, _ in scored), usage)

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
        if "next_token" not in self.capabilities:
            raise ConfigError(f"{self.name} returns no log-probabilities", expected="readout: sampled")
        if temperature <= 0.0:
            raise ConfigError(f"temperature {temperature} for next_token", expected="a positive temperature")

        def read(answer: Answer) -> NextToken:
            listed = answer.alternatives
            if not listed:
                raise BackendError(f"an answer of {self.name} without log-probabilities", kind="no_log_probs")
            return NextToken(*label_probabilities(listed, labels, temperature), answer.cost)

        return await self._ask(messages, _ONE_TOKEN, read, log_probs=True)

    async def _score(self, form: AnswerForm, messages: Sequence[Message], choice: str) -> tuple[ChoiceScore, Usage]:
        """Return the score of one choice; its tokens are learnt once."""
        if choice not in self._answers:
            asked = [*_GREETING, Message("assistant", choice)]
            learnt = await self._answer(asked, _ONE_TOKEN, _ANSWERED)
            self._answers[choice] = form.answer_in(learnt.prompt)
        tokens = self._answers[choice]

        def read(answer: Answer) -> tuple[ChoiceScore, Usage]:
            return form.score(answer.prompt, tokens), answer.cost

        return await self._ask([*messages, Message("assistant", choice)], _ONE_TOKEN, read, _ANSWERED)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()

    async def _listed_models(self) -> tuple[str, ...]:
        """Return the ids that the server lists; none if it has no list or does not show it to this key."""
        try:
            text = await self._transport.models()
            return tuple(model.id for model in _ModelList.model_validate_json(text).data)
        except ValidationError:
            return ()
        except HttpFailure as failure:
            if failure.fault.status == _WRONG_KEY:
                raise self._wrong(failure) from None
            return ()

    async def _probe(self, listed: Sequence[str]) -> None:
        """Ask for one token with its log-probabilities."""
        limits = self._transport.timeouts
        asking = asyncio.create_task(self._negotiate(_GREETING, _ONE_TOKEN, log_probs=True))
        try:
            for _ in range(2):
                if (await asyncio.wait({asking}, timeout=limits.check_s / 2))[0]:
                    break
                # A server that only fails, for half of that time, is not waited for.
                if (failing := self._transport.failing) is not None:
                    raise failing
            else:
                # The first answer of a server may take longer than all others.
                log.warning(
                    "%s has not answered within %g s; waiting for up to %g s: "
                    "after its start a server may load or compile",
                    self.name,
                    limits.check_s,
                    limits.timeout_s,
                )
            answer = await asyncio.wait_for(asking, limits.timeout_s)
        except TimeoutError:
            raise self._transport.silent(limits.timeout_s) from None
        except HttpFailure as failure:
            # Some models refuse to stop after one token; being listed shows well enough that they are there.
            if failure.fault.status in _REFUSALS and self._model in listed:
                return
            raise self._error(failure, listed) from None
        finally:
            asking.cancel()
        self.reports_usage = not answer.cost.unknown_calls
        if answer.alternatives:
            self._form = await self._learnt_form()
            self.capabilities = frozenset({"next_token", "score_at_1"} if self._form else {"next_token"})

    async def _learnt_form(self) -> AnswerForm | None:
        """Return how the server's template lays out an answer; None if it shows no log-probabilities of a prompt.

        Raises:
            BackendError: If no answer came. What a run reads must not depend on a slow moment of its server.
        """
        asked = [(_GREETING, _BEGUN), *(((*_GREETING, Message("assistant", word)), _ANSWERED) for word in PROBES)]
        prompts: list[list[PromptToken]] = []
        try:
            for messages, extra in asked:
                prompts.append((await self._negotiate(messages, _ONE_TOKEN, extra)).prompt)
                if not prompts[-1]:
                    return None
        except HttpFailure as failure:
            if failure.fault.status in _REFUSALS:
                return None
            raise self._error(failure) from None
        return AnswerForm.learnt(*prompts)

    async def _ask(
        self,
        messages: Sequence[Message],
        fields: Mapping[str, Any],
        read: Callable[[Answer], T],
        extra: Mapping[str, Any] = MappingProxyType({}),
        *,
        log_probs: bool = False,
    ) -> T:
        """Return what is read of the answer to a request.

        The first failure of each kind is logged with the server's words, since some records hold the kinds only. An
        answer that came and cannot be used has its cost on the failure.
        """
        try:
            answer = await self._answer(messages, fields, extra, log_probs=log_probs)
            try:
                return read(answer)
            except BackendError as error:
                error.billed = answer.cost.model_dump()
                raise
        except BackendError as error:
            if error.kind not in self._kinds_logged:
                self._kinds_logged.add(error.kind)
                who = "" if self.name in error.found else f"{self.name}: "
                log.warning("%s%s (further failures of the kind %s are only counted)", who, error.found, error.kind)
            raise

    async def _answer(
        self,
        messages: Sequence[Message],
        fields: Mapping[str, Any],
        extra: Mapping[str, Any],
        *,
        log_probs: bool = False,
    ) -> Answer:
        kept = [self._guard(message) for message in messages]
        try:
            answer = await self._negotiate(kept, fields, extra, log_probs=log_probs)
        except HttpFailure as failure:
            if self._transport.has_answered and failure.fault.status in (_WRONG_KEY, _WRONG_MODEL):
                # It worked before: is it this one call, or all from now on?
                listed = await self._listed_models()
                if listed and self._model not in listed:
                    raise self._wrong(failure, listed) from None
            raise self._error(failure) from None
        for field in self._accepted.left_out(fields):
            self._note(field, f"{self.name} does not take {field}; its requests go without it")
        if answer.cost.unknown_calls:
            self._note("usage", f"{self.name} does not report what a call used; tokens and cost are unknown")
        if self._accepted.merges_system:
            self._note("system", f"{self.name} takes no system messages; they go into the first user message")
        return answer

    async def _negotiate(
        self,
        messages: Sequence[Message],
        fields: Mapping[str, Any],
        extra: Mapping[str, Any] = MappingProxyType({}),
        *,
        log_probs: bool = False,
    ) -> Answer:
        """Post a request, again in another form whenever the server refuses the form."""
        while True:
            body = {**self._accepted.body(self._model, messages, fields, log_probs=log_probs), **extra}
            try:
                text = await self._transport.post(_CHAT, body)
            except HttpFailure as failure:
                fault = failure.fault
                if fault.status in _REFUSALS and self._accepted.learn(body, messages, fault.reason, fault.param):
                    continue
                raise
            return parse_answer(text)

    def _note(self, about: str, note: str) -> None:
        if about not in self._notes:
            self._notes[about] = note
            log.warning("%s", note)

    def _error(self, failure: HttpFailure, listed: Sequence[str] = ()) -> EsckitError:
        """Return the error that a user sees for an HTTP failure: wrong settings until the server answered once."""
        fault = failure.fault
        is_wrong = fault.status in (_WRONG_KEY, _WRONG_MODEL, *_NO_CHAT) or fault.status < 400
        if is_wrong and not self._transport.has_answered:
            return self._wrong(failure, listed)
        in_body = "HTTP 200 and an error in its body" if fault.is_answer else "HTTP 200 and no completion"
        answer = in_body if failure.in_body else f"HTTP {fault.status}"
        error = BackendError(f"{self.name} answered with {answer}: {fault.reason}", kind=fault.kind)
        error.attempts = failure.n_requests
        return error

    def _wrong(self, failure: HttpFailure, listed: Sequence[str] = ()) -> ConfigError:
        """Return the error for a server that cannot be used as the recipe says."""
        base_url, status = self._transport.base_url, failure.fault.status
        if status < 400:
            return ConfigError(
                f"{failure.fault.reason} (HTTP {status})",
                expected="the address of the server itself",
                hint="If you trust the other address, write it as base_url.",
            )
        if status == _WRONG_KEY:
            # What the server says here may repeat a part of the key.
            return ConfigError(
                f"{base_url} does not accept the key (HTTP 401)",
                expected=f"a valid key in the environment variable {self._key_env}" if self._key_env else None,
                hint=None if self._key_env else "Name the variable that holds the key as api_key_env.",
            )
        if status in _NO_CHAT:
            return ConfigError(
                f"{base_url} takes no chat requests (HTTP {status} for POST {_CHAT})",
                expected=_COMPATIBLE,
                hint=f"Check {self._where}.",
            )
        shown = ", ".join(listed[:_N_MODELS_SHOWN])
        return ConfigError(
            f"{base_url} does not know the model {self._model!r}, or has no {_CHAT} (HTTP 404)",
            expected=f"one of {shown}" if shown else None,
            hint=did_you_mean(self._model, listed) or f"Check {self._where}.",
        )
