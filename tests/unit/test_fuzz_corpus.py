"""The seeds of the fuzz targets are those that `python -m fuzz.corpus` makes."""

from __future__ import annotations

import pytest

from fuzz.corpus import CORPUS, QEMU, SEEDS, VIRTIO_USER
from fuzz.inputs import Message, decode_messages, encode_message
from mvirt_net.vhost_user import Request

from .vhost_user_peer import fresh


@pytest.mark.parametrize("target", SEEDS)
def test_files_are_what_the_script_makes(target: str) -> None:
    made = dict(SEEDS[target]())
    assert {path.name: path.read_bytes() for path in (CORPUS / target).iterdir()} == made


def test_nothing_is_lost_of_a_conversation() -> None:
    data = b"".join(encode_message(*message) for message in QEMU)
    assert list(decode_messages(data)) == list(QEMU)


def test_a_conversation_may_be_cut_short() -> None:
    data = encode_message(Request.SET_VRING_NUM, bytes(8), 0, 9)
    assert list(decode_messages(data[:-3])) == [(Request.SET_VRING_NUM, bytes(5), 0, 9)]
    assert list(decode_messages(data[:3])) == []


@pytest.mark.parametrize("conversation", [QEMU, VIRTIO_USER], ids=["qemu", "virtio-user"])
def test_recorded_conversations_are_understood(conversation: list[Message]) -> None:
    frontend = fresh()
    for request, payload, fds, flags in conversation:
        assert frontend.exchange(request, payload, fds, flags).refused is None, request
