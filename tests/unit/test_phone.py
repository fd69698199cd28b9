"""Phone numbers as carriers report them."""

import re

import phonenumbers
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.access import phone
from sidecar.withheld import is_placeholder

pytestmark = pytest.mark.unit

NUMBERS = {  # reserved for films and books, so nobody has them
    "US": ("+12025550100", "(202) 555-0100"),
    "GB": ("+442079460018", "020 7946 0018"),
    "DE": ("+493023125014", "030 / 23125-014"),
    "FR": ("+33199001234", "01.99.00.12.34"),
}
WORDS = (
    "unknown",
    "restricted",
    "anonymous",
    "private",
    "unavailable",
    "blocked",
    "withheld",
    "hidden",
    "payphone",
    "no caller id",
    "out of area",
    "private number",
    "unknown caller",
    "not provided",
    "not available",
)


def typed(word: str) -> str:
    """Return the digits that spell a word on a telephone's keypad."""
    keys = ("abc", "def", "ghi", "jkl", "mno", "pqrs", "tuv", "wxyz")
    return "".join(str(2 + n) for c in word for n, on in enumerate(keys) if c in on)


@pytest.mark.parametrize(("region", "both"), NUMBERS.items())
def test_a_number_is_the_same_in_each_spelling(region: str, both: tuple[str, str]) -> None:
    """All spellings of a number are read as one: with a plus, national, in a URI, spaced."""
    e164, national = both
    spaced = f"{e164[:3]} {e164[3:6]}-{e164[6:]}"
    for raw in (
        e164,
        spaced,
        f" {e164}\n",
        f"sip:{e164}@trunk.example",
        f"sips:{e164}@203.0.113.5:5061;user=phone",
        f"SIP:{e164}@[2001:db8::1]",
        f"tel:{e164}",
        f"{e164}@trunk.example",
    ):
        assert phone.read(raw, region=None) == phone.Reading(e164)
        assert phone.read(raw, region=region) == phone.Reading(e164)
    assert phone.read(national, region=region) == phone.Reading(e164)
    assert phone.read(national, region=None).why == "no_region"
    assert phone.is_e164(e164)
    assert not phone.is_e164(spaced)


@pytest.mark.parametrize(
    ("raw", "region", "e164"),
    [
        ("12025550100", "US", "+12025550100"),
        ("011442079460018", "US", "+442079460018"),
        ("0012025550100", "DE", "+12025550100"),
        ("4915112345678", "US", "+4915112345678"),
        ("+44 (0)20 7946 0018", None, "+442079460018"),
        ("+39 02 1234 5678", None, "+390212345678"),
    ],
)
def test_a_prefix_is_read_as_the_country_dials_it(raw: str, region: str | None, e164: str) -> None:
    """A number with its country's code or an international prefix is read as the one it reaches."""
    assert phone.read(raw, region=region).e164 == e164


@pytest.mark.parametrize("region", [None, "US", "DE", "GB", "ES", "SG"])
@pytest.mark.parametrize("word", WORDS)
def test_a_withheld_number_is_nobody_in_each_spelling(word: str, region: str | None) -> None:
    """A word for a withheld number is no number in any case, on a keypad or behind a code."""
    keys = typed(word.replace(" ", ""))
    for raw in (
        word,
        word.upper(),
        word.title().replace(" ", ""),
        word.replace(" ", "_"),
        f'"{word}"',
        f"<sip:{word}>",
        f"sip:{word.replace(' ', '.')}@192.0.2.7",
        f"+{keys}",
        keys,
        f"+1{keys}",
        f"1{keys}",
        f"00{keys}",
        f"sip:+{keys}@trunk.example",
        f"{keys[:3]}-{keys[3:]}",
        f"+{keys[:10]}",
        keys[:10],
    ):
        assert phone.read(raw, region=region).e164 == ""
    assert phone.read(word, region=region).why == "withheld"
    assert phone.read(f"+{keys}", region=region).why == "withheld"
    assert phone.read(f"caller id: {word}", region=region).why == "withheld"


def test_the_keypad_spellings_are_those_that_carriers_send() -> None:
    """The digits that carriers really send for these words are among the keypad spellings."""
    for digits in ("8656696", "7378742833", "266696687", "86282452253", "2562533", "7748283"):
        assert digits in map(typed, WORDS)
        for region in (None, "US", "DE"):
            for raw in (digits, f"+{digits}", f"+1{digits}"):
                assert phone.read(raw, region=region).e164 == ""


UP = "0123456789" * 2
ROWS = [row[at : at + n] for row in (UP, UP[::-1]) for at in range(10) for n in range(7, 12)]
CODES = sorted(phonenumbers.COUNTRY_CODE_TO_REGION_CODE)


@pytest.mark.parametrize("region", [None, "US", "DE", "GB", "FR", "IN", "IT", "ES", "SG", "NU"])
def test_a_row_of_digits_is_nobody(region: str | None) -> None:
    """Seven and more digits in order, up or down, or of one kind, are no number of any country."""
    rows = [digit * length for digit in "0123456789" for length in range(1, 16)] + ROWS
    for row in rows:
        for raw in (row, f"+{row}", f"+1{row}", f"1{row}", f"sip:{row}@192.0.2.7"):
            assert phone.read(raw, region=region).e164 == ""


@pytest.mark.parametrize("row", ROWS)
def test_a_row_of_digits_is_nobody_in_every_country(row: str) -> None:
    """Behind the code of any country, with or without a zero before it, a row is no number."""
    for code in CODES:
        assert phone.read(f"+{code}{row}", region=None).e164 == ""


@pytest.mark.parametrize(
    "raw",
    [
        *("+12345678901", "+1 (234) 567-8901", "+441234567890", "+33123456789", "+919876543210"),
        *("+38612345678", "+390123456789", "+49 987654321", "tel:+91-98765-43210"),
    ],
)
def test_a_row_behind_a_countrys_code_names_nobody(raw: str) -> None:
    """A row in a country's plan is no number, and no name either."""
    assert phone.read(raw, region=None) == phone.Reading(why="withheld")
    assert phone.stands_for_nobody(raw)


@pytest.mark.parametrize(
    "e164",
    [
        *("+12345678902", "+12025678901", "+12124567890", "+441234567891"),
        *("+441234567809", "+33123456780", "+919876543211", "+919876543201", "+919987654321"),
        *("+4915123456789", "+447123456789", "+38612345679", "+390212345678", "+61412345678"),
    ],
)
def test_a_row_inside_a_number_is_no_row(e164: str) -> None:
    """A number with some of its digits in order is a number, down to all but one of them."""
    assert phone.read(e164, region=None).e164 == e164
    assert not phone.stands_for_nobody(e164)


@pytest.mark.parametrize("region", [None, "US", "DE", "GB", "FR"])
@pytest.mark.parametrize(
    "raw",
    [
        "",
        "   ",
        "+",
        "+1",
        "sip:",
        "sip:@trunk.example",
        "sip:anonymous@anonymous.invalid",
        "sip:+12025550100@anonymous.invalid",
        "anonymous@anonymous.invalid",
        "sip:+12025550100@Anonymous.Invalid:5060;user=phone",
        "sip:+12025550100@anonymous.invalid.",
        "sip: 2025550100@trunk.example",
        "anonymous@192.0.2.7",
        "192.168.1.5",
        "10.0.0.1",
        "192.168.1.5:5060",
        "192.168.1.5/24",
        "sip:192.168.1.5",
        "sip:192.168.1.5@trunk.example",
        "2001:db8::1",
        "[2001:db8::1]",
        "alice1002",
        "bob1002",
        "user-2025550147",
        "2025550147-user",
        "+12025550100a",
        "a+12025550100",
        "1-800-FLOWERS",
        "+1800FLOWERS",
        "+12025550100 or +12025550101",
        "+12025550100/+12025550101",
        "++12025550100",
        "+1+2025550100",
        "+(12025550100",
        "+12025550100)",
        "+15550100",
        "+1555550100",
        "911",
        "1002",
        "+999123456789",
        '"Ada" <sip:+12025550100@trunk.example>',
        "+12025550100%20",
        "sip:+12025550100:secret@trunk.example",
        "sip:+12025550100@trunk.example or another",
        "\uff0b12025550100",
        "+1202555010\uff10",
        "+\u0661\u0662\u0660\u0662\u0665\u0665\u0665\u0660\u0661\u0660\u0660",
        "\u202a+12025550100\u202c",
        "+12025550100\u200e",
        "+1\u00ad2025550100",
        "+12025550100\x00",
        "+1202\n5550100",
        "+1202\u00a05550100",
        "+12025550100\ud800",
        "+1202" + "5" * 500,
        "+1202-----5550100",
    ],
)
def test_what_has_not_a_numbers_shape_is_none(raw: str, region: str | None) -> None:
    """Letters, hosts, controls, foreign digits and halves of a number are no number."""
    assert phone.read(raw, region=region).e164 == ""
    assert phone.read(raw, region=region).why
    assert not phone.is_e164(raw)


@pytest.mark.parametrize(
    "tail",
    [";ext=12", ";ext=34", " x12", " ext. 12", " extension 12", "#12", ",,12", ";postd=12", "p12"],
)
def test_a_number_with_an_extension_is_nobody(tail: str) -> None:
    """A number with an extension is not read as the number without it."""
    for raw in (
        f"+12025550100{tail}",
        f"sip:+12025550100{tail}@trunk.example",
        f"tel:+12025550100{tail}",
        f"(202) 555-0100{tail}",
    ):
        for region in (None, "US"):
            assert phone.read(raw, region=region) == phone.Reading(why="extension")


@pytest.mark.parametrize("name", ["ext", "EXT", "extension", "extn", "x", "isub", "postd", "%65xt"])
@pytest.mark.parametrize("mark", [";", "?", ";user=phone;", "?a=1&"])
def test_an_extension_in_a_uri_is_nobodys_number(mark: str, name: str) -> None:
    """An extension after the host, as a parameter or a header, makes the number nobody's."""
    for scheme in ("sip:", "sips:", ""):
        raw = f"{scheme}+12025550100@trunk.example{mark}{name}=12"
        assert phone.read(raw, region="US") == phone.Reading(why="extension")
        assert phone.has_extension(raw)
    same = f"sip:+12025550100@trunk.example{mark}line=12"
    assert phone.read(same, region=None).e164 == "+12025550100"
    assert not phone.has_extension(same)


PLACEHOLDERS = (
    *("tel:8656696", "sip:8656696", "tel:0000000000", "sip:0000000000@host", "SIP:8656696@host"),
    *("tel:8656696;phone-context=+1", "sip:anonymous;tag=1", "sip:18656696@host"),
    *("000-000-0000", "000.000.0000", "0000 0000", "865-6696", "+18656696", "+1 (000) 000-0000"),
    *("%2B8656696", "sip:%2B8656696@host", "anonymous.invalid", "sip:Anonymous.Invalid:5060"),
    *("sip_8656696", "sip_7378742833", "sip_0000000000", "sip_%2B8656696", "SIP_8656696"),
    *("sip_Unknown@host", "SIP_anonymous", "sip_anonymous@anonymous.invalid", "sip_sip:unknown"),
    *("sip-8656696", "caller-7378742833", "phone_+8656696", "user-+8656696", "caller_0000000000"),
    *("anonymous@192.0.2.7", "unknown@[2001:db8::1]:5060", "unknown@localhost"),
    *("%7B%7Bcustomer.number%7D%7D", "{caller}", "$CALLER", "<%= caller %>", "%(caller)s"),
    *("Unknown <sip:unknown@host>", '"Anonymous" <sip:anonymous@anonymous.invalid>'),
)
HOSTS = (
    "caller-192.168.1.5",
    "sip_192.168.1.5",
    "sip_192.168.1.5:5060",
    "sip:192.168.1.5",
    "sip_[2001:db8::1]",
)


@pytest.mark.parametrize("text", [*PLACEHOLDERS, *HOSTS])
def test_what_is_no_number_is_no_name(text: str) -> None:
    """What a carrier sends in place of a number stands for nobody as an id or identity, too."""
    assert phone.stands_for_nobody(text)
    for region in (None, "US", "DE"):
        assert phone.read(text, region=region).e164 == ""
    assert phone.read(text, region=None).why == ("no_number" if text in HOSTS else "withheld")


@pytest.mark.parametrize(
    "text",
    [
        *("8656696", "0000000000", "1-1", "00-00", "2/66", "192.168.1.5", "sip_alice"),
        *("sip_+12025550100", "tel:+12025550100", "sip:alice@192.168.1.5", "202-555-0100"),
        *("8656696@x.example", "a.invalid.example", "Ada <anonymous>", "ada%20lovelace", "invalid"),
        *("caller-1", "caller-111", "sip-alice", "user-8656696", "caller-2025550147", "$avvy"),
        *("user-+12025550100", "sip-room@x.example", "phone-7"),
    ],
)
def test_what_may_be_somebodys_id_is_kept(text: str) -> None:
    """Plain digits, short ids with separators, mail addresses and numbers are somebody."""
    assert not phone.stands_for_nobody(text)


NETWORKS = (
    *("Unbekannt", "Unbekannter Anrufer", "Anonym", "Unterdrückt", "UNTERDRUECKT", "Geheim"),
    *("Private Nummer", "keine Rufnummer", "Anonyme", "Inconnu", "Numéro inconnu", "Masqué"),
    *("NUMERO MASQUE", "Appel masqué", "Numéro privé", "Desconocido", "Anónimo", "Oculto"),
    *("Número oculto", "Privado", "numero desconocido", "Llamada privada", "Sconosciuto"),
    *("Anonimo", "Numero privato", "Privato", "Desconhecido", "Anônimo", "Número restrito"),
    *("não identificado", "Onbekend", "Anoniem", "Onbekende beller", "Privénummer", "Okänd"),
    *("Ukendt nummer", "Ukjent", "Tuntematon", "Nieznany", "Numer zastrzeżony", "Neznámé číslo"),
    *("Rejtett szám", "Necunoscut", "Bilinmeyen numara", "Özel numara", "Άγνωστος", "Απόκρυψη"),
    *("Неизвестный номер", "Номер скрыт", "Прихований номер", "Không xác định", "非通知"),
    *("公衆電話", "未知号码", "未知來電", "隱藏號碼", "발신번호 표시제한", "رقم خاص", "חסוי"),
)
BESIDE = (
    *("{}", "sip-{}", "sip_{}", "user-{}", "caller_{}", "participant-{}", "web.{}", "client:{}"),
    *("{}1", "{}-2", "{} (3)", "{}_012", "caller_{}_2", "{}-user", "{} {}", "<{}>", "sip:{}@host"),
)
IDS = (
    *("anna", "privateer", "guesthouse", "gastown", "unknowable", "anonymus-rex", "nonna", "Masha"),
    *("user1", "user-1", "caller-12", "participant-7", "sip-2", "Guest, Ada", "hidden-valley"),
    *("inconnue-de-seine", "private-ryan", "none-such", "nobody-knows-me", "unknown soldier"),
)
UNIQUE = ("4f3a91c2", "1042", "20471", "550e8400-e29b-41d4-a716-446655440000", "2026-11-29", "x9")


@pytest.mark.parametrize("beside", BESIDE)
def test_words_of_networks_and_programs_are_nobody(beside: str) -> None:
    """A word of any language's networks is nobody, with a role beside it or a short number."""
    for word in (*WORDS, *NETWORKS, "guest", "Gast", "invité", "visitor", "asterisk", "No Name"):
        for cased in (word, word.upper(), word.lower()):
            assert phone.stands_for_nobody(beside.replace("{}", cased))
            assert phone.read(beside.replace("{}", cased), region="DE").why == "withheld"


@pytest.mark.parametrize("name", IDS)
def test_a_name_that_holds_such_a_word_is_somebodys(name: str) -> None:
    """A word inside a name, a role with a number and a mail address are somebody's id."""
    assert not phone.stands_for_nobody(name)
    for word in ("guest", "anonymous", "unknown", "private", "privado", "gast"):
        assert not phone.stands_for_nobody(f"{word}@corp.example")
        assert phone.stands_for_nobody(f"{word}-{name}") == (name[-1] in "127")


@pytest.mark.parametrize("unique", UNIQUE)
@pytest.mark.parametrize("beside", ["{}-{}", "{}_{}", "user-{}-{}", "{}{}"])
def test_an_id_behind_such_a_word_is_one_persons(beside: str, unique: str) -> None:
    """An application's id for a guest, longer than a count of a few, is not every guest's."""
    for word in ("guest", "anonymous", "unknown", "Gast", "invité"):
        assert not phone.stands_for_nobody(beside.format(word, unique))


@given(st.text(max_size=200))
def test_only_what_holds_such_a_word_is_a_placeholder(text: str) -> None:
    """Whatever letters and separators are read, a placeholder stays one in any case."""
    if is_placeholder(text):
        assert is_placeholder(text.upper()) or not text.isascii()
        assert any(char.isalpha() for char in text)


def test_every_country_has_its_callers() -> None:
    """Examples of each kind of number in each country are read, as E.164 and spaced."""
    examples = [
        number
        for region in phonenumbers.SUPPORTED_REGIONS
        for kind in range(11)
        if (number := phonenumbers.example_number_for_type(region, kind)) is not None
        and phonenumbers.is_valid_number(number)
        and len(set(str(number.national_number))) > 1
        and str(number.national_number) not in ROWS
    ]
    assert len(examples) > 1000
    for number in examples:
        e164 = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)
        spaced = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.INTERNATIONAL)
        for region in (None, "US", "DE"):
            assert phone.read(e164, region=region).e164 == e164
            assert phone.read(spaced, region=region).e164 == e164
        national = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.NATIONAL)
        home = phonenumbers.region_code_for_number(number)
        assert phone.read(national, region=home).e164 in {e164, ""}


def test_what_two_countries_may_mean_is_nobody() -> None:
    """A number without its plus that may also be one of another country is ambiguous."""
    assert phone.read("4915112345678", region="DE").why == "ambiguous"
    assert phone.read("4587123456", region="US").why == "ambiguous"
    assert phone.read("+4915112345678", region="DE").e164 == "+4915112345678"


def test_some_texts_stand_for_nobody_and_some_read_like_a_number() -> None:
    """Names and ids with digits, a plus or a withheld word are neither a number nor nobody."""
    for text in (
        "ada",
        "alice1002",
        "8656696",
        "7",
        "0",
        "11",
        "anonymous-7f3a",
        "ada+1@x.example",
    ):
        assert not phone.stands_for_nobody(text)
        assert not phone.reads_like_number(text)
    for text in ("privacy@corp.example", "@ada", "123abc@x.example", "Ms. Private Ryan"):
        assert not phone.stands_for_nobody(text)
    for text in ("sip_anonymous", "sip_+8656696", "n/a", "N/A ", "-", "[object Object]"):
        assert phone.stands_for_nobody(text)
    for text in ("{{customer.number}}", "tel {{ caller }}", "${CALLER}"):
        assert phone.stands_for_nobody(text)
    for text in ("sip_+12025550100", "sip_alice", "Na", "a{b}c"):
        assert not phone.stands_for_nobody(text)
    for text in ("", " \t", "Anonymous", "+8656696", "+0000000", "\uff21nonymous", "sip:@x"):
        assert phone.stands_for_nobody(text)
    for text in ("+1", "+15550100", "\uff0b12025550100", "\u202a+1 202", "sip:12@pbx", "(202) 555"):
        assert phone.reads_like_number(text)


regions = st.sampled_from([None, *NUMBERS])
spelled = st.one_of(
    st.text("+0123456789 ()-./;ext@:abc", max_size=24),
    st.sampled_from([spelling for both in NUMBERS.values() for spelling in both]),
    st.from_regex(
        r"\+?(1|44|49|33)?[ (]?(202|020|20|30|0?1)[) -]?[0-9]{3,4}[- ./]?[0-9]{3,5}", fullmatch=True
    ),
)
DIALLING = {"US": ("1", "1", "011"), "GB": ("44", "0", "00"), "DE": ("49", "0", "00")} | {
    "FR": ("33", "0", "00")
}


def numbers_meant(raw: str, region: str | None) -> set[str]:
    """Return which numbers a text may mean, by its digits and the region's prefixes alone."""
    user = re.sub(r"^(sips?|tel):", "", raw.strip(), flags=re.IGNORECASE).partition("@")[0]
    digits = "".join(re.findall("[0-9]", user))
    if user.startswith("+"):
        return {f"+{digits}"} | {
            f"+{code}{digits.removeprefix(code + '0')}" for code, *_ in DIALLING.values()
        }
    code, trunk, abroad = DIALLING[region or "US"]
    return {
        f"+{digits}",
        f"+{code}{digits}",
        f"+{code}{digits.removeprefix(trunk)}",
        f"+{digits.removeprefix(abroad)}",
    }


@given(spelled, regions)
def test_a_number_or_a_reason(raw: str, region: str | None) -> None:
    """Any text of a carrier is read as an E.164 number, or as none with a reason."""
    found = phone.read(raw, region=region)
    assert bool(found.e164) != bool(found.why)
    if found.e164:
        assert phone.is_e164(found.e164)
        assert not phone.stands_for_nobody(raw)


@given(spelled, spelled, regions)
def test_two_texts_are_one_number_only_by_their_digits(
    one: str, other: str, region: str | None
) -> None:
    """Texts read as the same number have its digits, with at most a prefix beside them."""
    first, second = (phone.read(raw, region=region).e164 for raw in (one, other))
    if first and first == second:
        assert first in numbers_meant(one, region) & numbers_meant(other, region)
