"""The status page in a real browser, Debian's Chromium: with scripts and without."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from tests.harness.client import VhostTestClient
from tests.harness.config import one_network
from tests.harness.process import MAC, UNKNOWN, serve, started

from .browser import Browser, Tab, open_browser

pytestmark = [pytest.mark.guest, pytest.mark.timeout(180)]

CONFIG = one_network(vm1={"mac_address": MAC, "ipv4_address": "10.0.0.5"}, vm2={})

CONTRAST = """(() => {
    const parts = text => text.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
        .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = element => {
        const color = parts(getComputedStyle(element).backgroundColor);
        return color[3] === 0 ? behind(element.parentElement) : color;
    };
    const ratio = element => {
        const [a, b] = [parts(getComputedStyle(element).color), behind(element)].map(light);
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    };
    const shown = [...document.body.querySelectorAll("*")].filter(
        element => element.offsetParent && [...element.childNodes].some(
            node => node.nodeType === Node.TEXT_NODE && node.data.trim()));
    return shown.filter(element => ratio(element) < 4.5).map(element => element.outerHTML);
})()"""
"""The elements whose text has not the contrast that WCAG 2.2, 1.4.3 asks for."""


@attrs.define
class Site:
    """A daemon with two NICs, and a browser."""

    browser: Browser
    folder: Path
    address: str
    nursery: trio.Nursery

    async def open(self, *, scripts: bool = True) -> Tab:
        """The page in a tab."""
        tab = await self.browser.open_tab()
        if not scripts:
            await tab.disable_scripts()
        await tab.go(f"http://{self.address}/")
        return tab

    async def connect(self, name: str) -> VhostTestClient:
        """A frontend for a NIC."""
        return await VhostTestClient.connect(self.nursery, self.folder / f"{name}.sock")

    async def ask(self, method: str, path: str, body: dict[str, str] | None = None) -> None:
        """Have the daemon do something."""
        await trio.to_thread.run_sync(self._ask, method, path, body)

    def _ask(self, method: str, path: str, body: dict[str, str] | None) -> None:
        with contextlib.closing(http.client.HTTPConnection(self.address, timeout=30)) as client:
            text = None if body is None else json.dumps(body)
            client.request(method, path, text, {"content-type": "application/json"})
            assert client.getresponse().status < 300


@pytest.fixture
async def site(folder: Path, nursery: trio.Nursery) -> AsyncIterator[Site]:
    with started(*serve(folder, CONFIG), "--http", "127.0.0.1:0") as daemon:
        address = daemon.wait_event("control interface")["address"]
        daemon.wait_ready()
        async with open_browser() as browser:
            yield Site(browser, folder, address, nursery)


async def names(tab: Tab) -> list[str]:
    """Of the NICs that can be seen, in order."""
    rows = "[...document.querySelectorAll('[data-table=nics] tbody tr:not([hidden])')]"
    return list(await tab.evaluate(f"{rows}.map(row => row.cells[0].textContent)"))


def cell(name: str, column: int) -> str:
    """JavaScript for the cell of a NIC."""
    rows = "[...document.querySelectorAll('[data-table=nics] tbody tr')]"
    return f"{rows}.find(row => row.cells[0].textContent === '{name}')?.cells[{column}]"


async def test_it_follows_what_happens(site: Site) -> None:
    tab = await site.open()
    assert await names(tab) == ["vm1", "vm2"]
    assert await tab.evaluate(f"{cell('vm1', 1)}.textContent") == "created"
    await tab.wait_until("document.getElementById('live').textContent === 'live'")
    await tab.evaluate(f"window.kept = {cell('vm1', 1)}.closest('tr')")

    client = await site.connect("vm1")
    await tab.wait_until(f"{cell('vm1', 1)}.textContent === 'active'")
    await tab.wait_until(
        "document.querySelector('[data-table=events]').textContent.includes('connected')"
    )
    await client.send_packet(UNKNOWN)
    await tab.wait_until(f"{cell('vm1', 5)}.textContent === '1'")
    await tab.wait_until(f"{cell('vm1', 4)}.querySelector('.tx').points.length > 1")
    assert "bit/s" in await tab.evaluate(f"{cell('vm1', 2)}.textContent")
    drops = await tab.evaluate("document.querySelector('[data-table=drops] tbody').textContent")
    assert drops.startswith("ethertype1vm1 (1)")

    await site.ask("POST", "/v1/networks", {"name": "red", "ipv4_subnet": "10.1.0.0/24"})
    await site.ask("POST", "/v1/nics", {"name": "vm10", "network": "red"})
    await tab.wait_until(f"{cell('vm10', 1)}?.textContent === 'created'")
    assert await names(tab) == ["vm1", "vm2", "vm10"]
    await site.ask("DELETE", "/v1/networks/red?force=true")
    await tab.wait_until(f"{cell('vm10', 1)} === undefined")

    await client.aclose()
    await tab.wait_until(f"{cell('vm1', 1)}.textContent === 'created'")
    # All that in the rows that were there, without another load.
    assert await tab.evaluate("window.kept.isConnected")
    assert tab.loads == 1
    assert tab.complaints == []

    await tab.go_offline()
    await tab.wait_until("document.getElementById('live').dataset.live === 'no'")
    assert await names(tab) == ["vm1", "vm2"]


async def test_keys_filter_and_sort(site: Site) -> None:
    tab = await site.open()
    await tab.press("/")
    await tab.call("Input.insertText", text="VM2")
    assert await names(tab) == ["vm2"]
    await tab.evaluate("document.querySelector('input').value = ''")
    await tab.call("Input.insertText", text=" ")
    assert await names(tab) == ["vm1", "vm2"]

    head = "document.querySelector('[data-table=nics] thead th')"
    await tab.evaluate(f"{head}.querySelector('button').focus()")
    orders = []
    for _ in range(3):
        await tab.press("\r")
        orders.append((await tab.evaluate(f"{head}.ariaSort"), await names(tab)))
    assert orders == [
        ("ascending", ["vm1", "vm2"]),
        ("descending", ["vm2", "vm1"]),
        (None, ["vm1", "vm2"]),
    ]
    assert tab.complaints == []


async def test_without_scripts_it_loads_itself_again(site: Site) -> None:
    tab = await site.open(scripts=False)
    assert await at_rest(tab, f"{cell('vm1', 1)}.textContent") == "created"
    assert await at_rest(tab, f"{cell('vm2', 0)}.textContent") == "vm2"
    filter_ = "document.querySelector('.filter')"
    assert await at_rest(tab, f"getComputedStyle({filter_}).display") == "none"
    assert await at_rest(tab, "document.querySelector('header a').textContent") == "Reload"
    client = await site.connect("vm1")
    while await at_rest(tab, f"{cell('vm1', 1)}.textContent") != "active":
        await tab.wait_loads(tab.loads + 1)
    assert tab.complaints == []
    await client.aclose()


async def at_rest(tab: Tab, expression: str) -> Any:
    """The value, which is not null, when the page is loaded to its end."""
    complete = f"document.readyState === 'complete' ? {expression} : null"
    while (value := await tab.evaluate(complete)) is None:
        await tab.wait_loads(tab.loads + 1)
    return value


async def test_it_can_be_read_and_nothing_can_be_put_into_it(site: Site) -> None:
    client = await site.connect("vm1")
    tab = await site.open()
    await tab.wait_until("document.getElementById('live').textContent === 'live'")
    for scheme in ("light", "dark"):
        await tab.prefer(scheme)
        assert await tab.evaluate(CONTRAST) == []
    await tab.resize(360, 740)
    assert await tab.evaluate("document.documentElement.scrollWidth") <= 360
    await client.aclose()

    assert tab.complaints == []
    await tab.evaluate("""(() => {
        const script = document.createElement("script");
        script.textContent = "window.intruded = true";
        document.body.append(script);
    })()""")
    assert await tab.evaluate("window.intruded") is None
    with trio.fail_after(60):
        while not any("Content Security Policy" in text for text in tab.complaints):
            await site.browser.wait_message()
