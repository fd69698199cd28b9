"""What VAPI sends, one body of each kind; all values are invented."""

from collections.abc import Mapping
from typing import Any, NamedTuple

CALL_ID = "01a0a3c4-6b1e-7aa2-9d0e-3f5b8a1c2d44"
ADA = "+14155550123"
NOW_MS = 1_795_359_600_000
CUSTOMER = {"number": ADA, "name": "Ada Lind"}
PHONE_NUMBER = {
    "provider": "twilio",
    "number": "+14155550199",
    "name": "Main line",
    "twilioAccountSid": "AC00000000000000000000000000000000",
    "server": {"url": "https://sidecar.example/vapi/webhook"},
}
CALL = {
    "id": CALL_ID,
    "orgId": "eb166faa-7145-46ef-8044-589b47ae3b56",
    "type": "inboundPhoneCall",
    "createdAt": "2026-11-22T15:00:00.000Z",
    "updatedAt": "2026-11-22T15:00:00.900Z",
    "status": "in-progress",
    "phoneNumberId": "42b4b25d-031e-4786-857f-63b346c9580f",
    "customer": CUSTOMER,
    "phoneCallProvider": "twilio",
    "phoneCallProviderId": "CA44444444444444444444444444444444",
    "phoneCallTransport": "pstn",
    "monitor": {
        "listenUrl": f"wss://phone-call-websocket.vapi.ai/{CALL_ID}/listen",
        "controlUrl": f"https://phone-call-websocket.vapi.ai/{CALL_ID}/control",
    },
    "assistantOverrides": {"variableValues": {"tier": "gold"}, "metadata": {"branch": "lyon"}},
}
SPOKEN = (
    ("bot", "Hello, this is Ada. How can I help?"),
    ("user", "My dog is called Rex."),
    ("bot", "nice to meet rex"),
    ("user", "Which dog do I have?"),
)
OPENAI_HISTORY = [
    {"role": "system", "content": "You are Ada."},
    *({"role": "user" if who == "user" else "assistant", "content": t} for who, t in SPOKEN),
]
VAPI_HISTORY = [
    {
        "role": who,
        "message": text,
        "time": NOW_MS + 5_000 * number,
        "endTime": NOW_MS + 5_000 * number + 3_000,
        "secondsFromStart": 5.0 * number,
        "duration": 3_000,
    }
    for number, (who, text) in enumerate(SPOKEN)
]
TOOL_CALL = {
    "id": "call_9f2",
    "type": "function",
    "function": {"name": "recall", "arguments": '{"query": "dog"}'},
}
TOOL = {
    "type": "function",
    "async": False,
    "function": {
        "name": "recall",
        "description": "Look up what is remembered about the caller.",
        "parameters": {"type": "object", "properties": {"query": {"type": "string"}}},
    },
}


class Sent(NamedTuple):
    """One server message.

    Attributes:
        type: VAPI's type of it, as `module:Class`.
        message: Its body, without the envelope.
        answer: VAPI's type of the answer; empty where VAPI reads no answer.
    """

    type: str
    message: Mapping[str, Any]
    answer: str = ""


def message(kind: str, **more: object) -> dict[str, Any]:
    """Return a server message with the fields that all of them have."""
    return {
        "type": kind,
        "timestamp": NOW_MS + 30_000,
        "call": CALL,
        "phoneNumber": PHONE_NUMBER,
        "customer": CUSTOMER,
        **more,
    }


def speech(role: str, status: str) -> Sent:
    """Return a speech-update."""
    return Sent(
        "server_message_speech_update:ServerMessageSpeechUpdate",
        message("speech-update", role=role, status=status, turn=1),
    )


def transcript(kind: str, text: str, *, type_: str = "transcript") -> Sent:
    """Return a transcript of the caller's words."""
    return Sent(
        "server_message_transcript:ServerMessageTranscript",
        message(type_, role="user", transcriptType=kind, transcript=text),
    )


ASSISTANT_REQUEST = Sent(
    "server_message_assistant_request:ServerMessageAssistantRequest",
    message("assistant-request"),
    "server_message_response_assistant_request:ServerMessageResponseAssistantRequest",
)
HISTORIES = {"messages": VAPI_HISTORY, "messagesOpenAIFormatted": OPENAI_HISTORY}
SENT: Mapping[str, Sent] = {
    "assistant-request": ASSISTANT_REQUEST,
    "status-update, in progress": Sent(
        "server_message_status_update:ServerMessageStatusUpdate",
        message("status-update", status="in-progress"),
    ),
    "speech-update, user started": speech("user", "started"),
    "speech-update, user stopped": speech("user", "stopped"),
    "speech-update, assistant started": speech("assistant", "started"),
    "transcript, partial": transcript("partial", "My dog"),
    "transcript, final": transcript("final", "My dog is called Rex."),
    "transcript, final alone": transcript(
        "final", "And I live in Lyon.", type_='transcript[transcriptType="final"]'
    ),
    "conversation-update": Sent(
        "server_message_conversation_update:ServerMessageConversationUpdate",
        message("conversation-update", **HISTORIES),
    ),
    "user-interrupted": Sent(
        "server_message_user_interrupted:ServerMessageUserInterrupted",
        message("user-interrupted", turnId="3d0f2f3a-0d3b-4e53-9f36-1f1a2b3c4d5e"),
    ),
    "tool-calls": Sent(
        "server_message_tool_calls:ServerMessageToolCalls",
        message(
            "tool-calls",
            toolCallList=[TOOL_CALL],
            toolWithToolCallList=[{**TOOL, "toolCall": TOOL_CALL}],
        ),
        "server_message_response_tool_calls:ServerMessageResponseToolCalls",
    ),
    "tool-calls, unknown tool": Sent(
        "server_message_tool_calls:ServerMessageToolCalls",
        message(
            "tool-calls",
            toolCallList=[
                {
                    "id": "call_9f3",
                    "type": "function",
                    "function": {"name": "launchRockets", "arguments": "{}"},
                }
            ],
            toolWithToolCallList=[],
        ),
        "server_message_response_tool_calls:ServerMessageResponseToolCalls",
    ),
    "knowledge-base-request": Sent(
        "server_message_knowledge_base_request:ServerMessageKnowledgeBaseRequest",
        message("knowledge-base-request", **HISTORIES),
        "server_message_response_knowledge_base_request:ServerMessageResponseKnowledgeBaseRequest",
    ),
    "hang": Sent("server_message_hang:ServerMessageHang", message("hang")),
    "session.created": Sent(
        "server_message_session_created:ServerMessageSessionCreated",
        message(
            "session.created",
            session={
                "id": "9a1f0a52-8a44-4d51-8d0e-5f1b2a3c4d5e",
                "orgId": "eb166faa-7145-46ef-8044-589b47ae3b56",
                "createdAt": "2026-11-22T15:00:00.000Z",
                "updatedAt": "2026-11-22T15:00:00.000Z",
            },
        ),
    ),
    "assistant.speechStarted": Sent(
        "server_message_assistant_speech:ServerMessageAssistantSpeech",
        message("assistant.speechStarted", text="Hello, this is Ada.", turn=0, source="model"),
    ),
    "language-change-detected": Sent(
        "server_message_language_change_detected:ServerMessageLanguageChangeDetected",
        message("language-change-detected", language="fr"),
    ),
    "status-update, ended": Sent(
        "server_message_status_update:ServerMessageStatusUpdate",
        message("status-update", status="ended", endedReason="customer-ended-call"),
    ),
    "end-of-call-report": Sent(
        "server_message_end_of_call_report:ServerMessageEndOfCallReport",
        message(
            "end-of-call-report",
            endedReason="customer-ended-call",
            startedAt="2026-11-22T15:00:01.000Z",
            endedAt="2026-11-22T15:01:00.000Z",
            cost=0.0412,
            artifact={**HISTORIES, "transcript": "AI: Hello\nUser: My dog is called Rex.\n"},
            analysis={"summary": "", "successEvaluation": "true"},
        ),
    ),
}


def model_request(*, stream: bool, **more: object) -> dict[str, Any]:
    """Return a request to the model endpoint, as `metadataSendMode: variable` sends it."""
    return {
        "model": "gpt-4o-mini",
        "messages": OPENAI_HISTORY,
        "temperature": 0.5,
        "max_tokens": 250,
        "stream": stream,
        "tools": [{"type": "function", "function": TOOL["function"]}],
        "timestamp": NOW_MS + 20_000,
        "metadata": {"numAssistantTurns": 2, "numUserTurns": 2},
        "call": CALL,
        "phoneNumber": PHONE_NUMBER,
        "customer": CUSTOMER,
        **more,
    }
