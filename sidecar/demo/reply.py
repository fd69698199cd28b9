"""Replies to the last user message from what is known of the caller. Pure."""

import re
from collections.abc import Sequence

from sidecar.demo.facts import Fact, asked_for, facts_of_speech, questions_of
from sidecar.demo.prompt import Message, known_facts, said_by_caller

_SUGGESTION = (
    "I'm a demo model, so I keep it simple: tell me a fact about you and I'll remember it."
)
_GREETING = re.compile(
    r"\s*(?:hi|hello|hey|good (?:morning|afternoon|evening))\b[^?]{0,20}$", re.IGNORECASE
)
_THANKS = re.compile(r"\b(?:thanks|thank you|cheers)\b", re.IGNORECASE)
_FAREWELL = re.compile(r"\b(?:bye|goodbye|see you|good night)\b", re.IGNORECASE)


def reply_to(messages: Sequence[Message]) -> str:
    """Return what the demo model says next; never empty."""
    known = known_facts(messages)
    name = next((fact.value for fact in known if fact.key == "name"), "")
    asked = said_by_caller(messages)
    last = asked[-1].strip() if asked else ""
    if not last or _GREETING.match(last):
        welcome = f"Hello {name}, good to hear you again." if name else "Hello!"
        return f"{welcome} {_SUGGESTION}"
    said = [_acknowledgement(facts)] if (facts := facts_of_speech(last)) else []
    said += [_answer(question, known) for question in questions_of(last)]
    if said:
        return " ".join(dict.fromkeys(said))
    address = f", {name}" if name else ""
    if _FAREWELL.search(last):
        return f"Goodbye{address}. I'll remember what you told me."
    if _THANKS.search(last):
        return f"You're welcome{address}."
    return f"I see{address}. {_SUGGESTION}"


def _answer(question: str, known: Sequence[Fact]) -> str:
    hits = asked_for(question, known)
    if hits is None:
        return f"I can't answer that. {_SUGGESTION}"
    if not hits:
        return "I don't know that yet. Tell me, and I'll remember it."
    listed = _listed([fact.sentence for fact in hits])
    return f"{listed[0].upper()}{listed[1:]}."


def _acknowledgement(facts: Sequence[Fact]) -> str:
    name = next((fact.value for fact in facts if fact.key == "name"), "")
    rest = [fact.sentence for fact in facts if fact.key != "name"]
    if not name:
        return f"Got it: {_listed(rest)}. I'll remember that."
    return f"Nice to meet you, {name}." + (f" I'll remember that {_listed(rest)}." if rest else "")


def _listed(sentences: Sequence[str]) -> str:
    if len(sentences) == 1:
        return sentences[0]
    return f"{', '.join(sentences[:-1])} and {sentences[-1]}"
