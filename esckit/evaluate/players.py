"""Who is evaluated, who plays along and who judges: roles of an evaluation, built from bindings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from esckit.config.sections import RoleOptions
from esckit.errors import ConfigError
from esckit.evaluate.recipe import DialogueSettings, EvaluateRecipe
from esckit.play.episode import EpisodeCast
from esckit.prompts.prompt import Prompt, load_prompt
from esckit.protocols import StrategyPolicy, Supporter
from esckit.roles.asking import UtteranceRules
from esckit.roles.critics import CriticSettings, ResolutionCritic
from esckit.roles.judges import PairJudge, ReplyJudge, TurnJudge
from esckit.roles.pool import ModelPool, is_strategy_policy
from esckit.roles.rubric import RubricCritic, load_rubric
from esckit.roles.seekers import PromptedSeeker
from esckit.roles.strategist import PromptedStrategist
from esckit.roles.supporters import AFlowSupporter, PromptedSupporter
from esckit.roles.verdicts import Preset, load_preset
from esckit.strategies.taxonomy import Taxonomy

_COMPAT_TOKENS = 32

_COMPAT_SUPPORTER = "supporter_ppdpp"

_RATER_WEIGHTS = {"empathy": 0.1, "information": 0.1, "naturalness": 0.1, "strategy": 0.2}
"""AFlow's (arXiv 2602.08826); the rater's own reward is not used, its ratings are."""


def strategist_prompt(name: str | None, taxonomy: Taxonomy) -> Prompt:
    """Return a strategist's prompt: the named one, else AFlow's for its own taxonomy and a general one elsewhere."""
    return load_prompt(name or ("strategist" if taxonomy.name == "aflow" else "strategist_any"), "strategist")


def reply_prompt(name: str) -> Prompt:
    """Return a supporter's prompt; one with a ``transcript`` is AFlow's, see :func:`build_supporter`."""
    prompt = load_prompt(name)
    prompt.check("aflow supporter" if "transcript" in prompt.variables else "supporter", name)
    return prompt


def build_strategist(
    binding: RoleOptions,
    pool: ModelPool,
    taxonomy: Taxonomy | None,
    *,
    prompt: str | None,
    readout: Literal["json", "choices"],
    max_attempts: int,
) -> StrategyPolicy:
    """Return a prompted strategist, or the policy that ``esckit train-flow`` trained.

    Raises:
        ConfigError: If the taxonomy is not known, or the model cannot do the read-out.
        CheckpointError: If a trained policy is of another taxonomy.
    """
    known = known_taxonomy(taxonomy)
    if is_strategy_policy(binding):
        return pool.policy(binding, known)
    return PromptedStrategist(
        pool.voice(binding, max_attempts=max_attempts),
        strategist_prompt(prompt, known),
        known,
        readout,
        pool.window(binding),
    )


def known_taxonomy(taxonomy: Taxonomy | None) -> Taxonomy:
    """Return the taxonomy of an evaluation.

    Raises:
        ConfigError: If neither the recipe nor the corpus names one.
    """
    if taxonomy is None:
        raise ConfigError(
            "a strategist without a taxonomy", expected="taxonomy: NAME", hint="See 'esckit recipes show'"
        )
    return taxonomy


def build_supporter(
    binding: RoleOptions, pool: ModelPool, taxonomy: Taxonomy | None, prompt: Prompt, *, max_attempts: int
) -> Supporter:
    """Return a supporter of the kind that its prompt is for.

    A prompt with a ``transcript`` is AFlow's: one utterance under a given strategy. Any other reads the turns as chat.
    """
    if written := pool.flow_supporter(binding, taxonomy, max_attempts=max_attempts):
        return written
    voice = pool.voice(binding, max_attempts=max_attempts)
    if "transcript" in prompt.variables:
        rules = UtteranceRules(known_taxonomy(taxonomy), voice.max_words, voice.on_length)
        return AFlowSupporter(voice, prompt, rules, pool.window(binding))
    definitions = {strategy.name: strategy.definition for strategy in taxonomy.strategies} if taxonomy else {}
    return PromptedSupporter(voice, prompt, definitions, pool.window(binding))


@dataclass(frozen=True, slots=True)
class Casting:
    """Builds the roles of one evaluation.

    Attributes:
        taxonomy: Of the strategies; None where no suite needs one.
    """

    recipe: EvaluateRecipe
    pool: ModelPool
    taxonomy: Taxonomy | None

    def binding(self, role: str) -> RoleOptions:
        """Return the model of a role; the recipe class saw to it that there is one."""
        return self.recipe.models.bindings()[role]

    def strategist(self) -> StrategyPolicy:
        """Return the strategist."""
        return build_strategist(
            self.binding("strategist"),
            self.pool,
            self.taxonomy,
            prompt=self.recipe.prompts.strategist,
            readout=self.recipe.strategist.readout,
            max_attempts=self.recipe.settings.max_attempts,
        )

    def supporter(self) -> Supporter:
        """Return the supporter that answers one context at a time."""
        prompt = reply_prompt(self.recipe.prompts.supporter)
        return build_supporter(
            self.binding("supporter"), self.pool, self.taxonomy, prompt, max_attempts=self.recipe.settings.max_attempts
        )

    def pair_judge(self) -> PairJudge:
        """Return the judge of pairs."""
        binding = self.binding("judge")
        return PairJudge(
            self.pool.voice(binding, max_attempts=self.recipe.settings.max_attempts),
            load_prompt(self.recipe.prompts.judge_pairwise),
            self.recipe.settings.pairwise.dimensions,
            self.pool.window(binding),
        )

    def reply_judge(self) -> ReplyJudge:
        """Return the judge of single replies."""
        binding = self.binding("judge")
        return ReplyJudge(
            self.pool.voice(binding, max_attempts=self.recipe.settings.max_attempts),
            load_prompt(self.recipe.prompts.judge_reply),
            self.pool.window(binding),
        )

    def cast(self) -> EpisodeCast:
        """Return who takes part in self-play."""
        settings, prompts = self.recipe.settings.dialogue, self.recipe.prompts
        attempts = self.recipe.settings.max_attempts
        supporter, seeker = (_clipped(self.binding(role), settings) for role in ("supporter", "seeker"))
        return EpisodeCast(
            supporter=build_supporter(
                supporter, self.pool, self.taxonomy, supporter_prompt(self.recipe), max_attempts=attempts
            ),
            seeker=PromptedSeeker(
                self.pool.voice(seeker, max_attempts=attempts), load_prompt(prompts.seeker), self.pool.window(seeker)
            ),
            critics={name: self._critic(name) for name in settings.critics},
            strategist=self.strategist() if settings.strategy == "predicted" else None,
            turn_judge=self._turn_judge() if self.recipe.models.turn_judge is not None else None,
        )

    def _critic(self, name: str) -> ResolutionCritic:
        settings, binding = self.recipe.settings.dialogue, self.binding("critic")
        by_letter = settings.readout == "expected" and self.pool.model(binding).capabilities == {"next_token"}
        preset = critic_preset(name, settings)
        own = preset.prompt + ("_letters" if by_letter else "")
        return ResolutionCritic(
            self.pool.voice(binding, max_attempts=1),
            load_prompt(self.recipe.prompts.critic or own),
            preset,
            CriticSettings(
                readout=settings.readout,
                samples=settings.samples,
                min_parsed=settings.min_parsed,
                max_attempts=settings.max_attempts,
                expected_score=settings.expected_score,
                ppdpp_compat=settings.ppdpp_compat,
            ),
            window=self.pool.window(binding),
        )

    def _turn_judge(self) -> TurnJudge:
        binding = self.binding("turn_judge")
        return TurnJudge(
            RubricCritic(
                self.pool.voice(binding, max_attempts=self.recipe.settings.max_attempts),
                load_prompt(self.recipe.prompts.turn_judge),
                load_rubric("aflow"),
                weights=_RATER_WEIGHTS,
                readout="sampled",
                show_strategy=True,
                min_label_mass=0.0,
                window=self.pool.window(binding),
            )
        )


def supporter_prompt(recipe: EvaluateRecipe) -> Prompt:
    """Return the supporter's prompt in self-play: PPDPP's own under its compatibility switch."""
    compat = recipe.settings.dialogue.ppdpp_compat
    return reply_prompt(_COMPAT_SUPPORTER if compat else recipe.prompts.supporter)


def critic_preset(name: str, settings: DialogueSettings) -> Preset:
    """Return a critic's levels; PPDPP's own are read as its code does under the compatibility switch."""
    return replace(load_preset(name), takes_first=settings.ppdpp_compat and name == "ppdpp4")


def _clipped(binding: RoleOptions, settings: DialogueSettings) -> RoleOptions:
    """Return a speaker's binding, clipped at 32 tokens under the compatibility switch."""
    if not settings.ppdpp_compat:
        return binding
    sampling = binding.sampling.model_copy(update={"max_tokens": _COMPAT_TOKENS})
    return binding.model_copy(update={"sampling": sampling, "on_length": "last_sentence"})
