"""What the demo model understands of plain speech: fixed tables of patterns.

A *fact* is a subject and a value; in memory it is one line, ``Subject: value``. Most subjects
have one value at a time (a name, a home), so a new one replaces the old one; a few, such as likes,
are lists of lines. Text may come from a speech recogniser: lower case, no punctuation.
"""

import html
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

_VALUE_MAX_CHARS = 160
_NAME_MAX_WORDS = 3

# Subjects that may have several lines, each with its family: equal values in one exclude another.
_LISTS = {
    "allergy": "allergy",
    "dislikes": "taste",
    "likes": "taste",
    "note": "note",
    "plays": "plays",
    "prefers": "taste",
    "speaks": "speaks",
}
_SENTENCES = {
    "age": "you are {} years old",
    "allergy": "you are allergic to {}",
    "diet": "you are {}",
    "dislikes": "you don't like {}",
    "from": "you are from {}",
    "home": "you live in {}",
    "likes": "you like {}",
    "name": "your name is {}",
    "note": "you asked me to remember: {}",
    "plays": "you play {}",
    "prefers": "you prefer {}",
    "speaks": "you speak {}",
    "work": "you work {}",
}


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing known of the caller.

    Attributes:
        subject: Starts with a capital, as in memory.
        value: Never empty, one line.
        raw: The whole line, if it is not of the form ``Subject: value``.
    """

    subject: str
    value: str
    raw: str = ""

    @property
    def line(self) -> str:
        """The fact as a line of memory."""
        return self.raw or f"{self.subject}: {self.value}"

    @property
    def key(self) -> str:
        """Two facts of one key exclude each other."""
        subject = self.subject.lower()
        family = _LISTS.get(subject)
        return f"{family}/{_bare(self.value)}" if family else subject

    @property
    def sentence(self) -> str:
        """The fact as told to the caller, without a full stop and with a lower-case beginning."""
        subject = self.subject.lower()
        return _SENTENCES.get(subject, f"your {subject} is {{}}").format(self.value)


def _bare(text: str) -> str:
    return re.sub(r"[^\w ]+", "", text).casefold().strip()


def facts_of_memory(lines: Iterable[str]) -> list[Fact]:
    """Return the facts in lines of memory, whoever wrote them; other lines become notes."""
    facts: list[Fact] = []
    for line in lines:
        text = line.strip().lstrip("-*• ").strip()
        if not text:
            continue
        if fact := fact_of_line(text):
            facts.append(fact)
            continue
        said = facts_of_speech(_in_first_person(text))
        facts.extend(said or [Fact("Note", text.rstrip("."), raw=text)])
    return facts


def fact_of_line(line: str) -> Fact | None:
    """Return the fact a line of the form ``Subject: value`` holds."""
    match = re.fullmatch(r"[-*•\s]*([A-Z][A-Za-z' ]{0,40}): (\S.*)", line.rstrip())
    return Fact(match[1], match[2]) if match else None


def _in_first_person(text: str) -> str:
    """Turn an agent's sentence about the caller into one the caller might have said."""
    who = r"^(?:the )?(?:caller|user|human)"
    text = re.sub(
        rf"{who}(?:'s| has an?)? (?=name|favou?rite|dog|cat)", "my ", text, flags=re.IGNORECASE
    )
    text = re.sub(r"^(?:their|his|her) ", "my ", text, flags=re.IGNORECASE)
    text = re.sub(rf"(?:{who}|^they|^he|^she) (?:is|are) ", "I am ", text, flags=re.IGNORECASE)
    return re.sub(
        rf"(?:{who}|^they|^he|^she) (live|work|like|love|hate|prefer|speak|play)s? ",
        r"I \1 ",
        text,
        flags=re.IGNORECASE,
    )


def facts_of_speech(text: str) -> list[Fact]:
    """Return what callers state of themselves, in the order said; a key's latest value wins."""
    found: dict[str, Fact] = {}
    for sentence in _sentences(text):
        for fact in _facts_of_sentence(sentence):
            found.pop(fact.key, None)
            found[fact.key] = fact
    return list(found.values())


_QUESTION = re.compile(
    r"(?:(?:and|so|well|hey|hi|hello|okay|ok)[, ]+)*(?:what|what's|whats|who|who's|where|when|why"
    r"|how|which|do|does|did|is|are|am|was|were|have|has|should|can|could|would|will|tell me)\b",
    re.IGNORECASE,
)
_ASKED_TO_NOTE = re.compile(
    r"\b(?:can|could|would|will) you (?:please )?(?:remember|note|call)\b", re.IGNORECASE
)
_NOTE = re.compile(
    r"^(?:.*\b)?(?:remember|don't forget|do not forget|note|keep in mind)\b"
    r"(?: that\b)?[:,]?\s*(.*)$",
    re.IGNORECASE,
)
_STARTERS = r"(?:(?:i|i'm|im|i've|my|call me)\b(?!\.))"
_CLAUSE = re.compile(
    rf"[,\s]+(?:(?:and|but|so|also|because|then)\s+)?(?={_STARTERS})", re.IGNORECASE
)


def is_question(text: str) -> bool:
    """Return whether a text asks rather than states."""
    text = text.strip()
    if _ASKED_TO_NOTE.search(text):
        return False
    return text.endswith("?") or bool(_QUESTION.match(text))


# A full stop does not end a sentence after a title; after a month, if a number follows; and after
# any other short form or an initial, unless what follows begins a sentence.
_TITLE = re.compile(r"(?:dr|mr|mrs|ms|mx|st|mt|prof|rev|fr|sgt|capt|lt|col|gen)\.", re.IGNORECASE)
_OF_A_NUMBER = re.compile(r"(?:no|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec)\.", re.IGNORECASE)
_SHORT = re.compile(
    r"(?:jr|sr|ph\.?d|etc|vs|approx|apt|ave|rd|blvd|inc|ltd|co|corp|dept|(?:[a-z]\.)*[a-z])\.",
    re.IGNORECASE,
)
_BEGINNING = re.compile(
    rf"{_STARTERS}|(?:what|who|where|when|why|how|which|do|does|did|am|can|could|tell me)\b|what's",
    re.IGNORECASE,
)


def _ends_sentence(before: str, after: str) -> bool:
    """Whether a stop, at the end of the text before, is the end of a sentence."""
    last = before.rpartition(" ")[2].lstrip("(\"'")
    if _TITLE.fullmatch(last) or (_OF_A_NUMBER.fullmatch(last) and after[:1].isdigit()):
        return False
    return not _SHORT.fullmatch(last) or bool(_BEGINNING.match(after))


def _sentences(text: str) -> Iterator[str]:
    flat = text.replace("\u2019", "'").replace("\r", "\n")
    for line in re.split(r"[;\n]+", flat):
        begun = ""
        for part in re.split(r"(?<=[.!?])\s+", line):
            if begun and _ends_sentence(begun, part):
                yield begun
                begun = ""
            begun = f"{begun} {part}".strip()
        if begun:
            yield begun


_NEXT_QUESTION = re.compile(
    r"[,\s]+(?:and|also|or|plus|then)\s+(?:also\s+)?"
    r"(?=(?:what|who|where|when|why|how|which)(?:'?s)?\b|(?:do|did|am|is|are|can|could|will)\b)"
    r"|[,\s]+(?=(?:what|who|where|when|how)(?:'?s|\s+(?:is|are|am|was|do|did|does|old))\b)",
    re.IGNORECASE,
)
_THE_CALLER = re.compile(r"\b(?:my|mine|i)\b", re.IGNORECASE)


def questions_of(text: str) -> list[str]:
    """Return each question of a text, in order; one sentence may hold several."""
    asked: list[str] = []
    for sentence in filter(is_question, _sentences(text)):
        found: list[str] = []
        begun = ""
        for part in _NEXT_QUESTION.split(sentence):
            begun = f"{begun} {part}".strip()
            if _THE_CALLER.search(begun):  # otherwise it belongs to the question that follows
                found.append(begun)
                begun = ""
        if begun:
            found.append(begun)
        asked += [part for part in found if is_question(part)] or [sentence]
    return asked


def _facts_of_sentence(sentence: str) -> Iterator[Fact]:
    if is_question(sentence):
        return
    sentence = _INTRODUCTION.sub("my name is ", sentence)
    wanted = False  # the sentence asked to remember, and nothing was understood of it yet
    for clause in _CLAUSE.split(sentence.rstrip(".!? ")):
        if match := _NOTE.match(clause):
            wanted, rest = True, match[1]
        else:
            rest = clause
        if not rest:
            continue
        facts = list(_facts_of_clause(rest))
        if wanted and not facts and (note := _clean(rest)):
            facts = [Fact("Note", note)]
        yield from facts
        wanted = False


def _facts_of_clause(clause: str) -> Iterator[Fact]:
    for pattern, subject, shape in _PATTERNS:
        match = pattern.search(clause)
        if match is None:
            continue
        value = shape(match["value"])
        if value:
            named = (match.groupdict().get("what") or "").lower()
            yield Fact(subject.format(named).strip().capitalize(), value)
        return


_FILLER = re.compile(
    r"[\s,]+(?:now|nowadays|too|please|thanks|thank you|by the way|actually|a lot|so much"
    r"|very much|right now|as well|today|you know|though|anymore|any more"
    r"|recently|yesterday|last (?:week|month|year))$",
    re.IGNORECASE,
)
_EMPTY = frozenset({"it", "that", "this", "them", "you", "him", "her", "not", "the", "a", "so"})


def _clean(value: str) -> str:
    """Trim a value; empty when it says nothing by itself."""
    value = " ".join(value.split()).strip(" ,.!?\"'")
    while (shorter := _FILLER.sub("", value)) != value:
        value = shorter
    first = value.partition(" ")[0].lower()
    if value.lower() in _EMPTY or first == "not":
        return ""
    return value[:_VALUE_MAX_CHARS]


_NO_NAME = frozenset(
    re.findall(
        r"\S+",
        "a an and at back but by calling fine for from good here hello hi how i in is just not of"
        " on ok okay please ready so sorry speaking still sure thanks the this to tomorrow too what"
        " who with you",
    )
)


_INITIALS = re.compile(r"(?:[A-Za-z]\.)+")


def _name(value: str) -> str:
    """Return up to three words of a name, with titles and initials; stops where a name ends."""
    words: list[str] = []
    left = _NAME_MAX_WORDS
    for raw in _clean(value).split():
        if _TITLE.fullmatch(raw) or _INITIALS.fullmatch(raw):
            words.append(raw[0].upper() + raw[1:])
            continue
        if not left:
            break
        left -= 1
        word = raw.strip(",.!?\"'")
        if not word or word.lower() in _NO_NAME or not word[0].isalpha():
            break
        words.append(word if not word.islower() else "-".join(map(str.title, word.split("-"))))
        if raw != word:
            break
    return " ".join(words)


def _place(value: str) -> str:
    """Return a place, with capitals where a recogniser left them out."""
    place = _clean(value)
    if place.islower() and not re.match(r"(?:a|an|the|my)\b", place):
        return re.sub(r"\b(?!(?:of|in|on|the|near|de|la)\b)\w+", lambda m: m[0].capitalize(), place)
    return place


# "Hi, I'm Ada": only after a greeting and with a capital, else "I'm tired" would be a name.
_INTRODUCTION = re.compile(
    r"^(?:(?:hi|hello|hey|good morning|good evening|yes)[,! ]+)+"
    r"(?:i'm|i am|this is)\s+(?=(?-i:[A-Z]))",
    re.IGNORECASE,
)

_KIN = (
    "wife|husband|partner|son|daughter|mother|father|mum|mom|dad|brother|sister|boss|doctor|dog|cat"
    "|horse|bird|pet|car"
)
_I_AM = r"\b(?:i'm|im|i am)"
_OFTEN = r"(?:(?:really|also|just|still|mostly|absolutely|usually|now) )*"


def _rule(
    pattern: str, subject: str, shape: Callable[[str], str] = _clean
) -> tuple[re.Pattern[str], str, Callable[[str], str]]:
    return re.compile(pattern, re.IGNORECASE), subject, shape


# The first pattern that matches a clause decides. `{}` in a subject is the group `what`.
_PATTERNS = [
    _rule(r"\bmy (?:first |full |own )?name(?: is|'s) (?P<value>.+)", "Name", _name),
    _rule(r"\bcall me (?P<value>.+)", "Name", _name),
    _rule(
        r"\b(?:i'm|i am|this is|it's) (?P<value>(?-i:[A-Z])\S*(?: (?-i:[A-Z])\S*)?)"
        r" (?:here|speaking|calling)\b",
        "Name",
        _name,
    ),
    _rule(
        r"\bmy (?P<what>[\w-]+(?: [\w-]+)?)(?:'s name is| is (?:called|named)) (?P<value>.+)",
        "{}",
        _name,
    ),
    _rule(r"\bi have an? (?P<what>[\w-]+) (?:called|named) (?P<value>.+)", "{}", _name),
    _rule(r"\bmy favou?rite (?P<what>[\w -]+?) (?:is|are) (?P<value>.+)", "favourite {}"),
    _rule(rf"\bmy (?P<what>{_KIN}) is (?P<value>[A-Z].*)", "{}", _name),
    _rule(
        r"\bmy (?P<what>birthday|address|job|hometown|email|budget|age|nickname|order number"
        r"|car|appointment|flight) is (?:on |in |at )?(?P<value>.+)",
        "{}",
    ),
    _rule(rf"\bi {_OFTEN}live in (?P<value>.+)", "Home", _place),
    _rule(rf"\bi(?:'ve| have)? {_OFTEN}moved to (?P<value>.+)", "Home", _place),
    _rule(rf"\bi {_OFTEN}work (?P<value>(?:as|at|for|in|with) .+)", "Work"),
    _rule(rf"{_I_AM} {_OFTEN}allergic to (?P<value>.+)", "Allergy"),
    _rule(r"\bi have an? (?P<value>[\w-]+) allergy", "Allergy"),
    _rule(rf"{_I_AM} (?P<value>\d{{1,3}})(?: years old)?$", "Age"),
    _rule(rf"{_I_AM} {_OFTEN}(?:an? )?(?P<value>vegetarian|vegan|diabetic)\b", "Diet", str.lower),
    _rule(rf"{_I_AM} {_OFTEN}from (?P<value>.+)", "From", _place),
    _rule(
        rf"\bi {_OFTEN}(?:don't like|do not like|dont like|dislike|hate|can't stand) (?P<value>.+)",
        "Dislikes",
    ),
    _rule(rf"\bi {_OFTEN}(?:like|love|enjoy|adore) (?P<value>.+)", "Likes"),
    _rule(rf"\bi {_OFTEN}prefer (?P<value>.+)", "Prefers"),
    _rule(rf"\bi {_OFTEN}speak (?P<value>(?!to\b|with\b|for\b|about\b).+)", "Speaks", _place),
    _rule(rf"\bi {_OFTEN}play (?P<value>.+)", "Plays"),
]

# What a question asks for: the start of the keys that answer it.
_ASKED = [
    (re.compile(r"\b(?:my name|who am i|who i am|am i called)\b", re.IGNORECASE), ("name",)),
    (
        re.compile(
            r"\bwhere\b.*\b(?:i|me)\b.*\b(?:live|from)|my (?:home|address)\b", re.IGNORECASE
        ),
        ("home", "from", "address"),
    ),
    (re.compile(r"\ballerg", re.IGNORECASE), ("allergy/",)),
    (re.compile(r"\b(?:work|job)\b", re.IGNORECASE), ("work", "job")),
    (re.compile(r"\bhow old|my age\b", re.IGNORECASE), ("age",)),
    (re.compile(r"\bdo i (?:dis)?(?:like|love|hate|enjoy|prefer)\b", re.IGNORECASE), ("taste/",)),
]
_ASKED_ALL = re.compile(
    r"\b(?:know|remember|recall|memory|tell me)\b.*\b(?:about me|of me|everything)\b"
    r"|\bwhat (?:do|did) you (?:know|remember)\b",
    re.IGNORECASE,
)
_SMALL_WORDS = frozenset(
    re.findall(
        r"\S+",
        "a about am an and any are at can could did do does for have how i in is it me mine my of"
        " on or our remember tell that the this to was what what's whats when where which who why"
        " with you your know called name",
    )
)


def asked_for(question: str, facts: Iterable[Fact]) -> list[Fact] | None:
    """Return the facts that a question asks for; None if it is not about the caller at all.

    An empty list means that it is about the caller, and nothing is known.
    """
    question = question.replace("\u2019", "'")
    known = list(facts)
    if _ASKED_ALL.search(question):
        return known
    for pattern, keys in _ASKED:
        hits = [fact for fact in known if fact.key.startswith(keys)]
        if hits and pattern.search(question):
            return hits
    words = {_stem(word) for word in re.findall(r"[\w']+", question.lower())}
    words -= {_stem(word) for word in _SMALL_WORDS}
    hits = [
        fact
        for fact in known
        if words & {_stem(word) for word in re.findall(r"[\w']+", fact.line.lower())}
    ]
    about_caller = re.search(r"\b(?:my|i|me|mine)\b", question, re.IGNORECASE)
    return hits if hits or about_caller else None


def _stem(word: str) -> str:
    return word.removesuffix("'s").removesuffix("s").replace("our", "or")


def plain_lines(text: str) -> Iterator[str]:
    """Yield the lines of a marked-up text without tags, entities, bullets and line numbers."""
    for line in re.sub(r"<[^<>\n]{1,200}>", "\n", text).splitlines():
        bare = re.sub(r"^\s*\d+\u2192\s?", "", html.unescape(line)).strip()
        if bare:
            yield bare
