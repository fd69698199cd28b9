"""The two WebRTC connections of a participant: what it sends, and what it hears.

Audio is decoded and encoded again for each listener; data channels are passed on unchanged. aiortc
is the server's end, and libwebrtc (inside `livekit.rtc`) is the client's.
"""

import json
from collections.abc import Awaitable, Callable
from typing import Any, cast

from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription, rtp
from aiortc.contrib.media import MediaBlackhole, MediaRelay
from aiortc.mediastreams import MediaStreamTrack
from aiortc.rtcdatachannel import RTCDataChannel
from aiortc.sdp import candidate_from_sdp

_LOCAL = RTCConfiguration(iceServers=[])
_RELAY = MediaRelay()
_SILENT_DBOV = -127

# aiortc takes a frame's level sample by sample, in Python: a third of what a room costs, for a
# header that nobody here reads.
rtp.compute_audio_level_dbov = lambda _: _SILENT_DBOV


async def add_candidate(connection: RTCPeerConnection, candidate_init: str) -> None:
    """Add an ICE candidate in the client's form; an empty one ends them."""
    candidate: dict[str, Any] = json.loads(candidate_init) if candidate_init else {}
    # aiortc's types promise a description, but there is none before the first offer.
    described = cast("object", connection.remoteDescription) is not None
    if not candidate.get("candidate") or not described:
        return
    parsed = candidate_from_sdp(str(candidate["candidate"]).split(":", 1)[1])
    parsed.sdpMid = candidate.get("sdpMid")
    parsed.sdpMLineIndex = candidate.get("sdpMLineIndex")
    await connection.addIceCandidate(parsed)


class Sending:
    """What a participant sends. The client makes the offers.

    Args:
        on_track: A track arrived.
        on_data: A packet arrived on a data channel: label and bytes.
    """

    def __init__(
        self,
        on_track: Callable[[MediaStreamTrack], Awaitable[None]],
        on_data: Callable[[str, bytes], None],
    ) -> None:
        self.connection = RTCPeerConnection(_LOCAL)

        # Audio without a listener must not pile up: the first listener would get it in one burst,
        # later than it was said.
        self._unheard = MediaBlackhole()

        @self.connection.on("track")
        async def track(arrived: MediaStreamTrack) -> None:
            self._unheard.addTrack(_RELAY.subscribe(arrived))
            await self._unheard.start()
            await on_track(arrived)

        @self.connection.on("datachannel")
        def datachannel(channel: RTCDataChannel) -> None:
            @channel.on("message")
            def message(raw: bytes | str) -> None:
                on_data(channel.label, raw if isinstance(raw, bytes) else raw.encode())

    async def answer(self, sdp: str) -> str:
        """Answer the client's offer."""
        await self.connection.setRemoteDescription(RTCSessionDescription(sdp, "offer"))
        await self.connection.setLocalDescription(await self.connection.createAnswer())
        return self.connection.localDescription.sdp

    async def close(self) -> None:
        await self._unheard.stop()
        await self.connection.close()


class Hearing:
    """What a participant hears. The server makes the offers, one at a time.

    A new track also waits until the connection is open, because aiortc does not start a sender that
    is negotiated before that.

    Args:
        offer: Sends an offer (its number and SDP) to the client.
    """

    def __init__(self, offer: Callable[[int, str], Awaitable[None]]) -> None:
        self.connection = RTCPeerConnection(_LOCAL)
        self.connection.on("connectionstatechange", self._state_changed)
        self._send_offer = offer
        self._number = 0
        self._unanswered = False
        self._stands = False
        self._known: set[str] = set()
        self._new: list[tuple[MediaStreamTrack, str, str]] = []
        self._channels = {
            "_reliable": self.connection.createDataChannel("_reliable"),
            "_lossy": self.connection.createDataChannel("_lossy", ordered=False, maxRetransmits=0),
        }

    async def offer(self) -> None:
        """Offer the tracks that can be heard."""
        self._unanswered = True
        self._number += 1
        await self.connection.setLocalDescription(await self.connection.createOffer())
        await self._send_offer(self._number, self.connection.localDescription.sdp)

    async def answered(self, sdp: str) -> None:
        """Accept the client's answer."""
        await self.connection.setRemoteDescription(RTCSessionDescription(sdp, "answer"))
        self._unanswered = False
        await self._offer_what_is_new()

    async def hear(self, track: MediaStreamTrack, *, speaker_sid: str, track_sid: str) -> bool:
        """Let the participant hear a track; return False if it already does."""
        if track_sid in self._known:
            return False
        self._known.add(track_sid)
        self._new.append((track, speaker_sid, track_sid))
        await self._offer_what_is_new()
        return True

    async def _state_changed(self) -> None:
        if self.connection.connectionState == "connected" and not self._stands:
            self._stands = True
            await self._offer_what_is_new()

    async def _offer_what_is_new(self) -> None:
        if self._unanswered or not self._stands or not self._new:
            return
        for track, speaker_sid, track_sid in self._new:
            sender = self.connection.addTrack(_RELAY.subscribe(track))
            # The client reads participant and track from the SDP's stream and track ids.
            sender._stream_id = f"{speaker_sid}|{track_sid}"
            sender._track_id = track_sid
        self._new.clear()
        await self.offer()

    def tell(self, label: str, raw: bytes) -> None:
        """Send a data packet on, if the channel is open."""
        channel = self._channels[label]
        if channel.readyState == "open":
            channel.send(raw)

    async def close(self) -> None:
        await self.connection.close()
