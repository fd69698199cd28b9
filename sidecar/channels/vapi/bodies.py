"""What VAPI's bodies say about a call. Pure; every shape is read, none is required."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from sidecar.model import CallerHints, Consent, consent_of

Object: TypeAlias = Mapping[str, Any]

_CALL_ID_CHARS = 200
_HINT_CHARS = 200
_STAMP_LIMIT_MS = 1e14  # year 5138
_OUTBOUND = "outboundPhoneCall"
_BY_PHONE = frozenset({"inboundPhoneCall", _OUTBOUND})
NONE: Object = {}


@dataclass(frozen=True, slots=True)
class About:
    """Which call a body belongs to, and who is on the line.

    Attributes:
        call_id: VAPI's id; empty where the body names none (`metadataSendMode: off`).
        hints: Who the caller is.
        control_url: As the body names it, unchecked; a secret.
        stamp_ms: VAPI's time of the body, 0 where it names none.
    """

    call_id: str
    hints: CallerHints
    control_url: str
    stamp_ms: float


def about(body: Object, *, trust_web: bool) -> About:
    """Read a request to the model or the `message` of a webhook.

    A browser that starts a web call may write all of the call's data itself. On calls that are not
    by telephone only a refused consent is used, unless `trust_web` is set. A caller who dials in by
    SIP may set variables (VAPI makes them from `X-` headers), so variables are used only on
    outbound calls, which the owner's own backend starts, or with `trust_web`. A refused consent is
    used in any case.

    Args:
        body: Parsed.
        trust_web: The owner's own backend starts all calls that are not by telephone.
    """
    call = child(body, "call")
    overrides = child(call, "assistantOverrides")
    customers = child(body, "customer"), child(call, "customer")
    phone = _short(customers[0].get("number") or customers[1].get("number"))
    extension = _extension(customers[0]) or _extension(customers[1])
    if phone and extension:
        phone += extension
    metadata = {
        **child(child(body, "assistant"), "metadata"),
        **child(overrides, "metadata"),
        **child(body, "metadata"),
    }
    variables = child(overrides, "variableValues")
    kind = _short(call.get("type"))
    trusted = trust_web or kind in _BY_PHONE
    own_variables = variables if trust_web or kind == _OUTBOUND else NONE
    said = metadata.get("lettaConsent"), variables.get("letta_consent"), body.get("lettaConsent")
    agreed = (
        metadata.get("lettaConsent"),
        own_variables.get("letta_consent"),
        body.get("lettaConsent"),
    )
    consent: Consent = ""
    if any(consent_of(word) == "no" for word in said):
        consent = "no"
    elif trusted and any(consent_of(word) == "yes" for word in agreed):
        consent = "yes"
    hints = CallerHints(consent=consent)
    if trusted:
        hints = CallerHints(
            phone=phone,
            consent=consent,
            caller=_first(
                metadata.get("lettaCaller"),
                own_variables.get("letta_caller"),
                body.get("lettaCaller"),
            ),
            agent_id=_first(
                metadata.get("lettaAgentId"),
                own_variables.get("letta_agent_id"),
                body.get("lettaAgentId"),
            ),
        )
    return About(
        call_id=_short(call.get("id"), _CALL_ID_CHARS),
        hints=hints,
        control_url=_short(child(call, "monitor").get("controlUrl"), 1_000),
        stamp_ms=_stamp_ms(body.get("timestamp")),
    )


def child(parent: Object, name: str) -> Object:
    """Return an object inside an object; an empty one where there is none."""
    value = parent.get(name)
    return cast("Object", value) if isinstance(value, dict) else NONE


def items(parent: Object, name: str) -> Sequence[Any]:
    """Return a list inside an object; an empty one where there is none."""
    value = parent.get(name)
    return cast("Sequence[Any]", value) if isinstance(value, list) else ()


def _extension(customer: Object) -> str:
    """Return a customer's extension as a parameter of the number; `0` is one, too."""
    value = customer.get("extension")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f";ext={value}"
    return f";ext={_short(value)}" if value else ""


def _stamp_ms(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    return float(value) if 0 < value < _STAMP_LIMIT_MS else 0.0


def _first(*values: object) -> str:
    return next((short for value in values if (short := _short(value))), "")


def _short(value: object, limit: int = _HINT_CHARS) -> str:
    """Return a text within its limit, or "": a shortened id might be somebody else's."""
    if not isinstance(value, str) or len(value) > limit:
        return ""
    text = value.strip()
    return text if text.isprintable() else ""
