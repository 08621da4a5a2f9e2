"""The status page as a client of HTTP sees it: what it consists of, and who may have it."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import attrs
import pytest

from tests.harness.process import ask_features, started, two_nics

PARTS = {
    "/": "text/html; charset=utf-8",
    "/status.json": "application/json",
    "/status.js": "text/javascript; charset=utf-8",
    "/status.css": "text/css; charset=utf-8",
    "/status.svg": "image/svg+xml",
}

STATIC = {"/status.js", "/status.css", "/status.svg"}


@attrs.frozen
class Answer:
    status: int
    headers: dict[str, str]
    text: str


def ask(address: str, path: str, method: str = "GET", **headers: str) -> Answer:
    """One request on a connection of its own."""
    with contextlib.closing(http.client.HTTPConnection(address, timeout=30)) as client:
        client.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})
        response = client.getresponse()
        names = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, names, response.read().decode())


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Where a daemon with two NICs is asked; one of them has a frontend."""
    with started(*two_nics(tmp_path), "--http", "127.0.0.1:0") as daemon:
        address = daemon.wait_event("control interface")["address"]
        daemon.wait_ready()
        with socket.socket(socket.AF_UNIX) as frontend:
            frontend.connect(str(tmp_path / "vm2.sock"))
            ask_features(frontend)
            yield address
        assert daemon.stop() == 0


class Page(HTMLParser):
    """Its cells, by the key of their row, and all that it refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.refers: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.refers += [value or "" for name, value in attrs if name in ("href", "src")]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip()


def test_the_page_says_what_there_is(address: str) -> None:
    rows = Page(ask(address, "/").text).rows
    first = [row[:2] for row in rows if row]
    assert first.index(["vm1", "created"]) < first.index(["vm2", "active"])
    [network] = [row for row in rows if row and row[0] == "blue"]
    assert network[1:3] == ["served", "10.0.0.0/24"]
    assert "1 of 2\nactive" in network
    [event] = [row for row in rows if "connected" in row]
    assert "nic vm2" in event


def test_the_json_has_the_same_rows(address: str) -> None:
    ask(address, "/")
    tables = json.loads(ask(address, "/status.json").text)["tables"]
    names = {row[1] for table in tables.values() for row in table}
    rows = Page(ask(address, "/").text).rows
    # Rows of headers are left out, and those of templates have no text.
    heads = {"NIC", "Network", "Reason", "Time (UTC)", ""}
    assert {row[0] for row in rows if row} - heads == names


def test_it_consists_of_parts_of_its_own_only(address: str) -> None:
    page = Page(ask(address, "/").text)
    assert {f"/{reference.removeprefix('./')}" for reference in page.refers} <= set(PARTS)
    assert "style" not in page.tags
    for path, kind in PARTS.items():
        answer = ask(address, path)
        assert (answer.status, answer.headers["content-type"]) == (200, kind)
        assert "//" not in re.sub(
            r"^\s*// .*|/\*.*\*/|http://www.w3.org/2000/svg", "", answer.text, flags=re.M
        )


def test_headers(address: str) -> None:
    for path in PARTS:
        headers = ask(address, path).headers
        policy = dict(p.split(maxsplit=1) for p in headers["content-security-policy"].split("; "))
        assert policy.pop("default-src") == "'none'"
        assert policy.pop("frame-ancestors") == "'none'"
        assert set(policy.values()) == {"'self'", "'none'"}
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == ("no-cache" if path in STATIC else "no-store")


def test_parts_that_stay_the_same_are_sent_once(address: str) -> None:
    for path in PARTS:
        etag = ask(address, path).headers.get("etag")
        assert (etag is not None) == (path in STATIC)
        if etag is not None:
            again = ask(address, path, if_none_match=etag)
            assert (again.status, again.text) == (304, "")
            assert again.headers["cache-control"] == "no-cache"


def test_not_for_other_pages(address: str) -> None:
    for path in PARTS:
        assert ask(address, path, host="attacker.example").status == 421
        assert ask(address, path, origin="http://attacker.example").status == 403
        assert ask(address, path, sec_fetch_site="cross-site").status == 403
        assert ask(address, path, sec_fetch_site="same-origin").status == 200


def test_methods(address: str) -> None:
    for path in PARTS:
        head = ask(address, path, "HEAD")
        assert (head.status, head.text) == (200, "")
        refused = ask(address, path, "POST")
        assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD")
