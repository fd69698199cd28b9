"""What the error text of a failed run says about its batch."""

import pytest

from sidecar.errors import LettaError, OutcomeUnknown, Rejected, TooLarge
from sidecar.letta.app_server.turn import require_end
from sidecar.llm.failures import says_invalid, says_too_large

pytestmark = pytest.mark.unit

TOO_LARGE = [
    "context_window_exceeded",
    "CONTEXT_WINDOW_EXCEEDED: the request does not fit",
    "context_window_overflow_in_system_prompt",
    "Error code: 400 - {'error': {'code': 'context_length_exceeded'}}",
    "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens",
    "prompt is too long: 210000 tokens > 200000 maximum",
    "Input is too long for requested model.",
    "input length and `max_tokens` exceed context limit: 188240 + 21333 > 200000",
    "the request exceeds the available context size. try increasing the context size",
    "The number of tokens to keep from the initial prompt is greater than the context length",
    "Please reduce the length of the messages or completion.",
    "too many tokens: total number of tokens in the prompt cannot exceed 4081",
    "Input validation error: `inputs` must have less than 4096 tokens. Given: 5000",
    "`inputs` tokens + `max_new_tokens` must be <= 4097. Given: 4000 `inputs` tokens",
    "Request too large for model `llama` on tokens per minute (TPM): Limit 6000, Requested 9000",
    "The input token count (40000) exceeds the maximum number of tokens allowed (32768).",
]
INVALID = ["INVALID_ARGUMENT: Bad request to OpenAI", "invalid_request_error", "invalid_request"]
MENDABLE = [
    "",
    "llm_error",
    "llm_timeout",
    "llm_rate_limit",
    "llm_authentication",
    "Rate limit exceeded for LLM model provider.",
    "Connection refused",
    "model not found",
    "insufficient_credits",
    "An error occurred with the LLM request.",
    "Too many requests: rate limit of 30000 tokens per minute",
    "The server is overloaded, its context deadline was exceeded",
]


@pytest.mark.parametrize("words", TOO_LARGE)
def test_too_large_is_known_in_each_providers_words(words: str) -> None:
    """A model's "context too long" is recognised in each provider's words."""
    assert says_too_large(words)


@pytest.mark.parametrize("words", INVALID)
def test_an_invalid_request_stays_invalid(words: str) -> None:
    """An invalid request is recognised as such, and not as one that is too large."""
    assert says_invalid(words)
    assert not says_too_large(words)


@pytest.mark.parametrize("words", MENDABLE)
def test_what_may_be_mended_is_tried_again(words: str) -> None:
    """Unrecognised error text counts neither as too large nor as invalid."""
    assert not says_too_large(words)
    assert not says_invalid(words)


@pytest.mark.parametrize(
    ("words", "error"),
    [(TOO_LARGE[4], TooLarge), (INVALID[0], Rejected), (MENDABLE[-2], OutcomeUnknown)],
)
def test_the_app_servers_turn_ends_by_what_failed_before(
    words: str, error: type[LettaError]
) -> None:
    """The error that ended an App Server's turn decides how the post fails."""
    for frame, failure in (
        ({"stop_reason": "cancelled"}, f'{{"message": "{words}"}}'),
        ({"stop_reason": "error", "error": words}, ""),
    ):
        with pytest.raises(LettaError) as raised:
            require_end(frame, failure)
        assert type(raised.value) is error
