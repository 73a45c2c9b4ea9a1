"""Speakers of the pinned runs: functions of (messages, sampling, seed) that know nothing of esckit's insides."""

import json

ABBRS = ("RS", "Cla", "EV", "ES", "Aff", "CP", "SO", "SI")
LEVELS = ("Same", "Slightly better", "Moderately better", "Slightly worse", "Significantly better")
FOUR = ("Worse", "Same", "Better", "Solved")


def supporter(messages, sampling, seed):
    return f"<think>They said {len(messages)} things.</think> <response>I hear you ({seed % 97}).</response>"


def blank_supporter(messages, sampling, seed):
    """Say nothing in about one talk of three, and forget the form in others."""
    kind = _kind(messages, 3)
    return "" if kind == 0 else f"I am with you, {seed % 7}." if kind == 1 else supporter(messages, sampling, seed)


def plain_supporter(messages, sampling, seed):
    return f"I hear you ({seed % 97})."


def seeker(messages, sampling, seed):
    return f"I still feel low, {seed % 89}."


def leaving_seeker(messages, sampling, seed):
    """End the conversation now and then, content or not."""
    if seed % 13 == 0:
        return "</end/>"
    return f"I still feel low, {seed % 89}." + (" <ok>" if seed % 11 == 0 else "")


def critic(messages, sampling, seed):
    """Name a level; nothing readable in about one talk of eight, and in some answers elsewhere."""
    return "Hm." if _kind(messages, 8) == 0 or seed % 9 == 0 else LEVELS[seed % len(LEVELS)]


def four_critic(messages, sampling, seed):
    return "I cannot say." if _kind(messages, 5) == 0 else FOUR[(seed >> 3) % 4]


def rating_critic(messages, sampling, seed):
    """Rate four criteria; nothing readable in about one talk of sixteen."""
    if _kind(messages, 16) == 0:
        return "Hm."
    return "\n".join(f"{number}: {1 + (seed >> (4 * number)) % 5}" for number in range(1, 5))


def strategist(messages, sampling, seed):
    """Give probabilities by abbreviation; unsure in about one talk of six."""
    if _kind(messages, 6) == 0:
        return "I am not sure."
    weights = [1 + (seed >> (4 * number)) % 9 for number in range(8)]
    return json.dumps({abbr: weight / sum(weights) for abbr, weight in zip(ABBRS, weights, strict=True)})


def judge(messages, sampling, seed):
    """Prefer by the seed, say yes or no by the length; nothing readable about one case of five."""
    text = messages[-1].content
    if _kind(messages, 5) == 0:
        return "Hard to say."
    if "Answer with one JSON object" not in text:
        return "Yes" if len(text) % 3 else "No"
    keys = ("fluency", "identification", "comfort", "suggestion", "overall")
    return json.dumps({key: ("1", "2", "tie")[(seed >> place) % 3] for place, key in enumerate(keys)})


def _kind(messages, n):
    return sum(map(ord, messages[-1].content)) % n
