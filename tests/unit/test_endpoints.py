"""Where the control interfaces listen, as users write it."""

from __future__ import annotations

from typing import Any

import pytest

from mvirt_net.endpoints import DEFAULT_GRPC, parse_endpoint, parse_endpoints


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (DEFAULT_GRPC, "[::1]:50054"),
        ("127.0.0.1:8080", "127.0.0.1:8080"),
        ("127.7.7.7:1", "127.7.7.7:1"),
        ("localhost:80", "127.0.0.1:80"),
        ("[::1]:0", "[::1]:0"),
        ("unix:/run/mvirt-net/api.sock", "unix:/run/mvirt-net/api.sock"),
    ],
)
def test_an_endpoint_is_an_address_of_this_host_or_a_socket(text: str, shown: str) -> None:
    endpoint = parse_endpoint(text)
    assert str(endpoint) == shown
    assert parse_endpoint(endpoint) == endpoint


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("0.0.0.0:80", "not a loopback address"),
        ("[::]:80", "not a loopback address"),
        ("10.0.0.1:80", "not a loopback address"),
        ("unix:api.sock", "must be absolute"),
        ("unix:", "must be absolute"),
        ("unix:/", "not the path of a file"),
        ("unix:/" + "x" * 107, "107 bytes at most"),
        ("127.0.0.1", "is not like"),
        ("::1:50054", "is not like"),
        ("127.0.0.1:65536", "no such port"),
        ("host:80", "does not appear to be an IPv4 or IPv6 address"),
        ("", "is not like"),
        (5, "not a text"),
    ],
)
def test_anything_else_is_refused(text: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_endpoint(text)


def test_several_stand_in_a_list_or_between_commas() -> None:
    assert parse_endpoints("127.0.0.1:1, unix:/a") == parse_endpoints(["127.0.0.1:1", "unix:/a"])
    assert len(parse_endpoints(["127.0.0.1:0", "127.0.0.1:0"])) == 2
    with pytest.raises(ValueError, match="unix:/a is there twice"):
        parse_endpoints("unix:/a,unix:/a")
    with pytest.raises(ValueError, match="5 is not a list"):
        parse_endpoints(5)
