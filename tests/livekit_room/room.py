"""Rooms and their participants: LiveKit's signalling (`/rtc`), audio only.

Left out, because no test needs it: video, TURN, resumed connections, permissions, encryption.
"""

import time
import uuid
from collections.abc import Mapping
from typing import Any

from aiohttp import WSMsgType, web
from aiortc.mediastreams import MediaStreamTrack
from livekit.protocol import models, rtc

from tests.livekit_room.media import Hearing, Sending, add_candidate

VERSION = "1.13.5"  # the version that the server reports; clients choose their dialect by it
PROTOCOL = 16
_KINDS = {
    "agent": models.ParticipantInfo.Kind.AGENT,
    "sip": models.ParticipantInfo.Kind.SIP,
}


def new_sid(prefix: str) -> str:
    return prefix + uuid.uuid4().hex[:12]


class Room:
    """One room and its participants, by identity."""

    def __init__(self, name: str) -> None:
        self.info = models.Room(sid=new_sid("RM_"), name=name, creation_time=int(time.time()))
        self.participants: dict[str, Participant] = {}

    def others(self, participant: "Participant") -> list["Participant"]:
        return [other for other in self.participants.values() if other is not participant]

    async def tell_others(self, participant: "Participant", message: rtc.SignalResponse) -> None:
        for other in self.others(participant):
            await other.say(message)

    async def close(
        self, reason: models.DisconnectReason = models.DisconnectReason.ROOM_DELETED
    ) -> None:
        """Disconnect everybody."""
        leave = rtc.LeaveRequest(reason=reason, action=rtc.LeaveRequest.Action.DISCONNECT)
        for participant in list(self.participants.values()):
            await participant.say(rtc.SignalResponse(leave=leave))
            await participant.hang_up()


class _Track:
    """A track as announced; `media` is set when its packets arrive."""

    def __init__(self, info: models.TrackInfo) -> None:
        self.info = info
        self.media: MediaStreamTrack | None = None


class Participant:
    """One client in a room, behind its signalling socket."""

    def __init__(
        self, room: Room, socket: web.WebSocketResponse, claims: Mapping[str, Any]
    ) -> None:
        self.room = room
        self._socket = socket
        self._tracks: dict[str, _Track] = {}
        self._unannounced: list[MediaStreamTrack] = []
        self._sending: Sending | None = None
        self._hearing = Hearing(self._offer)
        kind = claims.get("kind", "")
        self.info = models.ParticipantInfo(
            sid=new_sid("PA_"),
            identity=claims["sub"],
            name=claims.get("name", ""),
            metadata=claims.get("metadata", ""),
            attributes=claims.get("attributes") or {},
            state=models.ParticipantInfo.State.ACTIVE,
            joined_at=int(time.time()),
            kind=_KINDS.get(kind, models.ParticipantInfo.Kind.STANDARD),
            permission=models.ParticipantPermission(
                can_subscribe=True,
                can_publish=True,
                can_publish_data=True,
                can_update_metadata=True,
                agent=kind == "agent",
            ),
        )

    @property
    def identity(self) -> str:
        return self.info.identity

    async def say(self, message: rtc.SignalResponse) -> None:
        if not self._socket.closed:
            await self._socket.send_bytes(message.SerializeToString())

    async def hang_up(self) -> None:
        await self._socket.close()

    async def stay(self) -> None:
        """Stay in the room until the socket closes."""
        await self._join()
        try:
            async for message in self._socket:
                if message.type == WSMsgType.BINARY:
                    await self._take(rtc.SignalRequest.FromString(message.data))
        finally:
            await self._leave()

    async def _join(self) -> None:
        others = self.room.others(self)
        await self.say(
            rtc.SignalResponse(
                join=rtc.JoinResponse(
                    room=self.room.info,
                    participant=self.info,
                    other_participants=[other.info for other in others],
                    server_version=VERSION,
                    subscriber_primary=True,
                    ping_interval=5,
                    ping_timeout=15,
                    server_info=models.ServerInfo(
                        edition=models.ServerInfo.Edition.Standard,
                        version=VERSION,
                        protocol=PROTOCOL,
                    ),
                    enabled_publish_codecs=[models.Codec(mime="audio/opus")],
                )
            )
        )
        self.room.participants[self.identity] = self
        await self._announce()
        await self._hearing.offer()
        for other in others:
            for track in other._tracks.values():
                await self._hear(other, track)

    async def _leave(self) -> None:
        if self.room.participants.get(self.identity) is self:
            del self.room.participants[self.identity]
        self.info.state = models.ParticipantInfo.State.DISCONNECTED
        self.info.disconnect_reason = models.DisconnectReason.CLIENT_INITIATED
        await self._announce()
        await self._hearing.close()
        if self._sending:
            await self._sending.close()

    async def _announce(self) -> None:
        update = rtc.ParticipantUpdate(participants=[self.info])
        await self.room.tell_others(self, rtc.SignalResponse(update=update))

    async def _take(self, request: rtc.SignalRequest) -> None:
        match request.WhichOneof("message"):
            case "offer":
                await self._answer(request.offer)
            case "answer":
                await self._hearing.answered(request.answer.sdp)
            case "trickle":
                await self._trickle(request.trickle)
            case "add_track":
                await self._add_track(request.add_track)
            case "update_metadata":
                self.info.attributes.update(request.update_metadata.attributes)
                await self._announce()
            case "ping":
                await self.say(rtc.SignalResponse(pong=int(time.time() * 1000)))
            case "ping_req":
                pong = rtc.Pong(
                    last_ping_timestamp=request.ping_req.timestamp,
                    timestamp=int(time.time() * 1000),
                )
                await self.say(rtc.SignalResponse(pong_resp=pong))
            case "leave":
                await self.hang_up()
            case _:
                pass

    # Media

    async def _answer(self, offer: rtc.SessionDescription) -> None:
        if self._sending is None:
            self._sending = Sending(self._track_arrived, self._data_arrived)
        sdp = await self._sending.answer(offer.sdp)
        answer = rtc.SessionDescription(type="answer", sdp=sdp, id=offer.id)
        await self.say(rtc.SignalResponse(answer=answer))

    async def _offer(self, number: int, sdp: str) -> None:
        offer = rtc.SessionDescription(type="offer", sdp=sdp, id=number)
        await self.say(rtc.SignalResponse(offer=offer))

    async def _trickle(self, trickle: rtc.TrickleRequest) -> None:
        if trickle.target == rtc.SignalTarget.SUBSCRIBER:
            await add_candidate(self._hearing.connection, trickle.candidateInit)
        elif self._sending:
            await add_candidate(self._sending.connection, trickle.candidateInit)

    async def _add_track(self, request: rtc.AddTrackRequest) -> None:
        info = models.TrackInfo(
            sid=new_sid("TR_"),
            type=request.type,
            name=request.name,
            source=request.source,
            mime_type="audio/opus",
            muted=request.muted,
        )
        self._tracks[request.cid] = _Track(info)
        self.info.tracks.append(info)
        published = rtc.TrackPublishedResponse(cid=request.cid, track=info)
        await self.say(rtc.SignalResponse(track_published=published))
        await self._announce()
        await self._bind()

    async def _track_arrived(self, media: MediaStreamTrack) -> None:
        self._unannounced.append(media)
        await self._bind()

    async def _bind(self) -> None:
        """Match announced tracks with their media by order, which is all that libwebrtc keeps."""
        for track in self._tracks.values():
            if track.media is None and self._unannounced:
                track.media = self._unannounced.pop(0)
                for other in self.room.others(self):
                    await other._hear(self, track)

    async def _hear(self, speaker: "Participant", track: _Track) -> None:
        if track.media is None:
            return
        new = await self._hearing.hear(
            track.media, speaker_sid=speaker.info.sid, track_sid=track.info.sid
        )
        if new:
            heard = rtc.TrackSubscribed(track_sid=track.info.sid)
            await speaker.say(rtc.SignalResponse(track_subscribed=heard))

    def _data_arrived(self, label: str, raw: bytes) -> None:
        packet = models.DataPacket.FromString(raw)
        packet.participant_identity = self.identity
        packet.participant_sid = self.info.sid
        wanted = set(packet.destination_identities)
        for other in self.room.others(self):
            if not wanted or other.identity in wanted:
                other._hearing.tell(label, packet.SerializeToString())
