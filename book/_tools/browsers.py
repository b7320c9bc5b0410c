"""The browser of this machine, and a few lines of its protocol.

Chromium is driven over two pipes (``--remote-debugging-pipe``): no port, no driver, no package.
"""

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
]


def executable() -> str | None:
    """Path of a Chromium executable, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """A running Chromium: commands go in, answers and events come out."""

    def __init__(self, process: subprocess.Popen, to: int, reader: asyncio.StreamReader) -> None:
        self.process = process
        self.to = to
        self.reader = reader
        self.numbers = itertools.count(1)
        self.waiting: dict[int, asyncio.Future] = {}
        self.tabs: dict[str, Tab] = {}

    async def listen(self) -> None:
        """Hand every answer to whom it concerns, until the browser closes."""
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                message = json.loads((await self.reader.readuntil(b"\0"))[:-1])
                if "id" in message:
                    self.answer(message)
                elif tab := self.tabs.get(message.get("sessionId", "")):
                    tab.notice(message["method"], message["params"])
        for answer in [one for one in self.waiting.values() if not one.done()]:
            answer.set_exception(RuntimeError("the browser has closed"))

    def answer(self, message: dict[str, Any]) -> None:
        """Wake the command that this message answers."""
        answer = self.waiting.pop(message["id"])
        if answer.done():  # nobody waits any more
            return
        if "error" in message:
            answer.set_exception(RuntimeError(message["error"]["message"]))
        else:
            answer.set_result(message["result"])

    async def send(
        self, method: str, session: str = "", *, timeout: float = 120, **params: object
    ) -> dict[str, Any]:
        """Send a command and return its result, which takes at most `timeout` seconds."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        self.waiting[number] = asyncio.get_running_loop().create_future()
        left = json.dumps(message).encode() + b"\0"
        while left:
            left = left[os.write(self.to, left) :]
        return await asyncio.wait_for(self.waiting[number], timeout)

    async def tab(self) -> "Tab":
        """Open an empty tab with cookies and storage of its own."""
        context = await self.send("Target.createBrowserContext")
        target = await self.send("Target.createTarget", url="about:blank", **context)
        attached = await self.send("Target.attachToTarget", flatten=True, **target)
        tab = Tab(self, attached["sessionId"])
        self.tabs[tab.session] = tab
        for domain in ("Page", "Runtime", "Log", "Network"):
            await tab.send(f"{domain}.enable")
        return tab


class Tab:
    """One tab, with what its pages requested and complained about."""

    def __init__(self, browser: Browser, session: str) -> None:
        self.browser = browser
        self.session = session
        self.loaded = asyncio.Event()
        self.requested: list[str] = []
        self.complaints: list[str] = []

    def notice(self, method: str, params: dict[str, Any]) -> None:
        """Note what concerns a reader."""
        if method == "Page.loadEventFired":
            self.loaded.set()
        elif method == "Network.requestWillBeSent":
            self.requested.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.complaints.append(details.get("exception", details).get("description", "thrown"))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.complaints.append(" ".join(str(a.get("value", a)) for a in params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            entry = params["entry"]
            self.complaints.append(f"{entry['text']} {entry.get('url', '')}".strip())

    async def send(self, method: str, *, timeout: float = 120, **params: object) -> dict[str, Any]:
        """Send a command to this tab."""
        return await self.browser.send(method, self.session, timeout=timeout, **params)

    async def visit(self, address: str) -> None:
        """Open an address and wait until it has loaded."""
        self.loaded.clear()
        self.requested.clear()
        self.complaints.clear()
        await self.send("Page.navigate", url=address)
        await asyncio.wait_for(self.loaded.wait(), 60)

    async def resize(self, width: int, height: int = 900) -> None:
        """Give the tab the size of a screen in CSS pixels."""
        await self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    async def evaluate(self, expression: str, timeout: float = 120) -> Any:
        """Return the value of JavaScript; of a promise, what it is fulfilled with."""
        answer = await self.send(
            "Runtime.evaluate",
            timeout=timeout,
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"].get("description", "thrown"))
        return answer["result"].get("value")


@contextlib.asynccontextmanager
async def running(*flags: str) -> AsyncIterator[Browser]:
    """Start Chromium with a profile of its own, and end it."""
    program = executable()
    assert program, "no Chromium on this machine"
    command_read, command_write = os.pipe()
    answer_read, answer_write = os.pipe()
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        start = 'exec 3<&"$1" 4>&"$2"; shift 2; exec "$@"'  # it reads from 3 and writes to 4
        pipes = [str(command_read), str(answer_write)]
        chromium = [program, *FLAGS, *flags, f"--user-data-dir={profile}"]
        process = subprocess.Popen(
            ["bash", "-c", start, "bash", *pipes, *chromium],
            pass_fds=[command_read, answer_write],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(command_read)
        os.close(answer_write)
        reader = asyncio.StreamReader(limit=2**28)
        loop = asyncio.get_running_loop()
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.connect_read_pipe(
            lambda: protocol, os.fdopen(answer_read, "rb", 0)
        )
        browser = Browser(process, command_write, reader)
        listening = asyncio.create_task(browser.listen())
        try:
            yield browser
        finally:
            with contextlib.suppress(Exception):
                await browser.send("Browser.close", timeout=5)
            try:
                await asyncio.to_thread(process.wait, 20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            # a child of the browser may hold the pipe open for minutes
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listening
            transport.close()
            os.close(command_write)
