"""Words that are sent in place of a caller, as networks and applications write them. Pure.

All callers who withhold their number, or have no account, get the same few words. One that is not
known here would be one caller with one memory for all of them; a person whose name is such a word
gets no memory. So a word belongs here if networks or programs show it, not if it is merely rare as
a name.
"""

import re
import unicodedata
from typing import Final

_ENGLISH: Final = (
    *("anonymous", "anon", "blocked", "coinphone", "hidden", "nocli", "nocallerid", "noid"),
    *("none", "nonumber", "notavailable", "notprovided", "null", "outofarea", "payphone"),
    *("privacy", "private", "restricted", "suppressed", "unavailable", "undefined", "undisclosed"),
    *("unidentified", "unknown", "withheld"),
)
_OF_PROGRAMS: Final = (
    *("asterisk", "freeswitch", "guest", "masked", "nobody", "noname", "notdisclosed", "notknown"),
    *("unlisted", "unpublished", "visitor"),
)
_ELSEWHERE: Final = {
    "de": (
        "anonym anonyme anonymer unbekannt unbekannte unbekannter unterdrückt unterdrueckt"
        " unterdrückte unterdrueckte verborgen verborgene versteckt privat gast besucher"
        " nichtverfügbar nichtverfuegbar keinerufnummer keinenummer geheim geheime"
    ),
    "fr": "anonyme inconnu inconnue masqué masquée privé privée confidentiel indisponible"
    " nondisponible noncommuniqué invité visiteur",
    "es": "anónimo anónima desconocido desconocida oculto oculta privado privada restringido"
    " restringida bloqueado nodisponible sinnúmero noidentificado invitado visitante",
    "it": "anonimo anonima sconosciuto sconosciuta nascosto nascosta privato privata riservato"
    " riservata nondisponibile ospite",
    "pt": "anônimo anônima desconhecido desconhecida oculto privado privada restrito restrita"
    " confidencial indisponível nãoidentificado convidado visitante",
    "nl": "anoniem anonieme onbekend onbekende afgeschermd afgeschermde verborgen privé geheim"
    " nietbeschikbaar bezoeker",
    "sv": "anonym okänd okänt dolt dold hemligt skyddat gäst",
    "da": "anonym ukendt hemmeligt skjult gæst",
    "no": "anonym ukjent hemmelig skjult gjest",
    "fi": "anonyymi tuntematon salainen yksityinen vieras",
    "pl": "anonim anonimowy nieznany nieznana zastrzeżony ukryty prywatny gość",
    "cs": "anonymní neznámý neznámé skryté skryto utajené soukromé",
    "hu": "ismeretlen rejtett titkosított névtelen vendég",
    "ro": "anonim necunoscut ascuns privat oaspete",
    "tr": "anonim bilinmeyen gizli özelnumara misafir",
    "el": "ανώνυμος ανώνυμη άγνωστος άγνωστη απόκρυψη",
    "ru": "аноним анонимный неизвестный неизвестно неизвестен скрытый скрыт гость",
    "uk": "анонім анонімний невідомий прихований гість",
    "id": "anonim tidakdikenal nomorpribadi tamu",
    "vi": "ẩndanh khôngxácđịnh khôngrõ",
    "ja": "非通知 非通知設定 通知不可能 匿名 不明 公衆電話 ゲスト",
    "zh": "未知 匿名 隐藏 隱藏 私人号码 私人號碼 无号码 不明 访客 訪客",
    "ko": "익명 알수없음 발신번호표시제한 발신번호없음 번호없음 게스트",
    "ar": "مجهول غيرمعروف رقمخاص محجوب خاص",
    "he": "אנונימי חסוי לאידוע",
}
_BESIDE: Final = (
    "call caller id name number line phone tel sip user participant identity client customer web"
    " app contact"
    " anruf anrufer nummer rufnummer teilnehmer benutzer kunde"
    " appel appelant numéro correspondant utilisateur"
    " llamada llamante número usuario cliente chamada chamador usuário"
    " chiamata chiamante utente beller oproep gebruiker klant"
    " numer rozmówca číslo volající szám hívó număr numara arayan"
    " номер абонент пользователь αριθμός 号码 號碼 来电 來電 电话 電話 用户 用戶 번호 رقم מספר"
)
_MOST_CHARS: Final = 80
_MOST_DIGITS: Final = 3  # one of a few, as in `guest2`; more digits are somebody's id
LOCAL_DIGITS: Final = 7
"""Fewer digits can be a whole number of a small country, or an id."""
_COUNTRY_DIGITS: Final = 3
_UP: Final = "0123456789" * 3
_ROWS: Final = (_UP, _UP[::-1])
_KEYS: Final = str.maketrans("abcdefghijklmnopqrstuvwxyz", "22233344455566677778889999")
_NATIONAL_DIGITS: Final = 10  # length of a North American number, to which a longer word is cut


def _bare(text: str) -> str:
    """Return the letters and digits of a text, without accents or case."""
    plain = unicodedata.normalize("NFKD", text.casefold()).casefold()
    return "".join(char for char in plain if char.isalnum())


def _any_of(words: set[str]) -> str:
    return "|".join(map(re.escape, sorted(map(_bare, words), key=lambda word: (-len(word), word))))


_WORDS: Final = {*_ENGLISH, *_OF_PROGRAMS, *(w for ws in _ELSEWHERE.values() for w in ws.split())}
_WORD: Final = f"(?:{_any_of(_WORDS)})(?:{_any_of(set(_BESIDE.split()))})*"
_PLACEHOLDER: Final = re.compile(
    rf"(?:{_any_of(set(_BESIDE.split()))})*(?:{_WORD}){{1,2}}[0-9]{{0,{_MOST_DIGITS}}}"
)

ON_A_KEYPAD: Final = frozenset(
    typed
    for word in _ENGLISH
    for beside in ("", "caller", "number")
    for whole in (word.translate(_KEYS) + beside.translate(_KEYS),)
    for typed in (whole, whole[:_NATIONAL_DIGITS])
)
"""Digits of the words that networks type on a telephone's keypad: `8656696` is UNKNOWN."""


def is_placeholder(text: str) -> bool:
    """Whether a text is words that stand in a caller's place, however they are spelled.

    Case, accents and separators don't matter. A role may be beside the words, and a short number
    behind them: `sip-anonymous`, `Unbekannter Anrufer`, `guest_2`. With anything else beside them
    (`guest-4f3a91c2`, `anonymous-20471`) they are an id that may be one person's.
    """
    bare = _bare(text[: _MOST_CHARS + 1])
    return len(text) <= _MOST_CHARS and _PLACEHOLDER.fullmatch(bare) is not None


def is_filler(national: str) -> bool:
    """Whether the digits of a number without its country code are no person's.

    That is a word on a keypad, one digit repeated, or a row: nothing but digits in their order, up
    or down, where 0 comes after 9. People type a row where a form or a test asks for a number, so
    the few real numbers that are rows are nobody's. A row inside a number means nothing.
    """
    if national in ON_A_KEYPAD or len(set(national)) == 1:
        return True
    return len(national) >= LOCAL_DIGITS and any(national in row for row in _ROWS)


def may_be_anybodys(number: str) -> bool:
    """Whether a text that was sent as a number may be sent for more than one telephone.

    True for some numbers that are a person's: the plans of countries are not known here.
    """
    digits = "".join(char for char in number if char in "0123456789")
    if len(digits) < LOCAL_DIGITS or is_placeholder(number):
        return True
    return any(
        is_filler(digits[code:])
        for code in range(_COUNTRY_DIGITS + 1)
        if len(digits) - code >= LOCAL_DIGITS
    )
