"""A headless Chromium, driven through its DevTools protocol over a pair of pipes.

The protocol is JSON messages with a zero byte behind each
(https://chromedevtools.github.io/devtools-protocol). Pipes need neither a port nor a WebSocket, and
nothing else can talk to the browser.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import trio

TIMEOUT = 40.0
"""Seconds for anything that a browser is to do, on a busy machine."""

LOG = "stderr"
"""Beside the files of the profile."""

_FLAGS = (
    "--headless",
    "--no-sandbox",  # which it refuses to make for root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    # It would look for its makers at every start.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)
_EXEC = 'exec chromium "$@" 3<&{commands} 4>&{messages}'
"""It expects its ends of the pipes to be these descriptors."""


class BrowserError(Exception):
    """The browser would not do what it was asked for."""


@attrs.define(eq=False)
class Browser:
    """Made by `open_browser`."""

    _commands: trio.lowlevel.FdStream
    _messages: trio.lowlevel.FdStream
    _log: Path
    """Where it complains; most of that is about what a container has not got."""
    _ids: itertools.count[int] = attrs.field(factory=lambda: itertools.count(1))
    _results: dict[int, dict[str, Any] | None] = attrs.field(factory=dict)
    _tabs: dict[str, Tab] = attrs.field(factory=dict)
    """By session."""
    _arrived: trio.Event = attrs.field(factory=trio.Event)
    """Set, and replaced, with each message."""
    _ended: bool = False

    async def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol; returns its result."""
        id_ = next(self._ids)
        command: dict[str, Any] = {"id": id_, "method": method, "params": params}
        if session is not None:
            command["sessionId"] = session
        self._results[id_] = None
        with contextlib.suppress(trio.BrokenResourceError):  # then it has ended
            await self._commands.send_all(json.dumps(command).encode() + b"\0")
        with trio.fail_after(TIMEOUT):
            while (answer := self._results[id_]) is None:
                await self.wait_message()
        del self._results[id_]
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']}")
        return dict(answer["result"])

    async def open_tab(self) -> Tab:
        """An empty tab, a page of 1280 × 900 pixels."""
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        tab = Tab(self, attached["sessionId"])
        self._tabs[tab.session] = tab
        for domain in ("Page", "Runtime", "Log"):
            await tab.call(f"{domain}.enable")
        await tab.resize(1280, 900)
        return tab

    async def read(self) -> None:
        """Take in what the browser says, until it ends; a task."""
        buffer = bytearray()
        while data := await self._messages.receive_some():
            buffer += data
            *whole, rest = buffer.split(b"\0")
            buffer = rest
            for message in whole:
                self._take(json.loads(message))
            self._notify()
        self._ended = True
        self._notify()

    def _notify(self) -> None:
        self._arrived.set()
        self._arrived = trio.Event()

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._results[message["id"]] = message
        elif (tab := self._tabs.get(message.get("sessionId", ""))) is not None:
            tab.take(message["method"], message["params"])

    async def wait_message(self) -> None:
        """Wait until it says anything. Raises BrowserError when it has ended."""
        if not self._ended:
            await self._arrived.wait()
        if self._ended:
            raise BrowserError(f"the browser has ended: {self._log.read_text()}")


@attrs.define(eq=False)
class Tab:
    """A page in the browser; made by `Browser.open_tab`."""

    browser: Browser
    session: str
    complaints: list[str] = attrs.field(factory=list)
    """Errors and warnings: what is on the console, exceptions, violations of the policy."""
    loads: int = 0
    """How often a page was loaded to its end."""

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """As `Browser.call`, for this tab."""
        return await self.browser.call(method, self.session, **params)

    def take(self, method: str, params: dict[str, Any]) -> None:
        """Called with each event of the tab."""
        match method:
            case "Page.loadEventFired":
                self.loads += 1
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(params["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.complaints.append(json.dumps(params["args"]))
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                self.complaints.append(params["entry"]["text"])

    async def go(self, url: str) -> None:
        """Load a page, to its end."""
        loads = self.loads
        await self.call("Page.navigate", url=url)
        await self.wait_loads(loads + 1)

    async def wait_loads(self, loads: int) -> None:
        """Wait until so many pages have been loaded."""
        with trio.fail_after(TIMEOUT):
            while self.loads < loads:
                await self.browser.wait_message()

    async def evaluate(self, expression: str) -> Any:
        """The value of an expression in JavaScript; also where the page may run none itself."""
        result = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in result:
            raise BrowserError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    async def wait_until(self, condition: str) -> None:
        """Wait for a change of the document after which the expression is true."""
        await self.evaluate(f"""new Promise(resolve => {{
            const observer = new MutationObserver(check);
            function check() {{ if ({condition}) {{ observer.disconnect(); resolve(); }} }}
            observer.observe(document, {{
                subtree: true, childList: true, attributes: true, characterData: true
            }});
            check();
        }})""")

    async def press(self, key: str) -> None:
        """Press and release a key that writes a character."""
        await self.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=key)
        await self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    async def resize(self, width: int, height: int, scale: float = 1.0) -> None:
        """Give the page so many pixels; below 500 as on a phone."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 500,
        )

    async def prefer(self, scheme: str) -> None:
        """Be somebody who likes the ``light`` or ``dark`` scheme."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.call("Emulation.setEmulatedMedia", features=features)

    async def disable_scripts(self) -> None:
        """Run no scripts of the pages to come."""
        await self.call("Emulation.setScriptExecutionDisabled", value=True)

    async def go_offline(self) -> None:
        """Reach nobody any more."""
        await self.call("Network.enable")
        unlimited = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        await self.call("Network.emulateNetworkConditions", offline=True, **unlimited)

    async def screenshot(self, path: Path) -> None:
        """Write what can be seen, as PNG."""
        image = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(image["data"]))


@contextlib.asynccontextmanager
async def open_browser() -> AsyncIterator[Browser]:
    """A browser that nobody has used before, for the length of the block."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process, commands, messages = _start(Path(profile))
        async with (
            trio.lowlevel.FdStream(commands) as sender,
            trio.lowlevel.FdStream(messages) as receiver,
            trio.open_nursery() as nursery,
        ):
            browser = Browser(sender, receiver, Path(profile, LOG))
            nursery.start_soon(browser.read)
            try:
                yield browser
            finally:
                nursery.cancel_scope.cancel()
                process.kill()
                process.wait()  # it does not take long


def _start(profile: Path) -> tuple[subprocess.Popen[bytes], int, int]:
    """The process, where it takes commands, and where its messages come from."""
    commands, own_commands = os.pipe()
    own_messages, messages = os.pipe()
    try:
        with (profile / LOG).open("wb") as log:
            shell = _EXEC.format(commands=commands, messages=messages)
            process = subprocess.Popen(
                ["bash", "-c", shell, "bash", *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
                pass_fds=(commands, messages),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
    finally:
        os.close(commands)
        os.close(messages)
    return process, own_commands, own_messages
