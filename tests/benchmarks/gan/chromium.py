# SPDX-License-Identifier: MIT
"""A headless Chromium driven over pipes (Chrome DevTools Protocol); nothing beside the standard library."""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")
TIMEOUT_S = 60
LAUNCHER = """
import fcntl, os, sys
copies = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for copy, wanted in zip(copies, (3, 4)):
    os.dup2(copy, wanted)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""The browser reads commands from file descriptor 3 and writes answers to 4."""


def find() -> str | None:
    """Its path; None where there is none."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """One page. Messages are JSON that end with a zero byte, numbered, answered in any order."""

    def __init__(self, commands: int, answers: int) -> None:
        self.commands, self.answers, self.n_sent, self.rest = commands, answers, 0, b""
        self.session: str | None = None
        target = self.call("Target.createTarget", url="about:blank", width=1240, height=800)["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command; events in between are dropped."""
        self.n_sent += 1
        message = {"id": self.n_sent, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.n_sent:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            data = os.read(self.answers, 1 << 16)
            assert data, "the browser ended"
            self.rest += data
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def js(self, expression: str) -> Any:
        """Value of an expression, awaited; an exception in the page fails the test."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until an expression is true."""
        self.js(
            "new Promise((resolve, reject) => {"
            f"const end = Date.now() + {1000 * TIMEOUT_S};"
            f"(function look() {{ if ({condition}) resolve();"
            f"else if (Date.now() > end) reject(new Error({json.dumps(condition)}));"
            "else setTimeout(look, 20); })(); })"
        )

    def open(self, url: str) -> None:
        """Load a page."""
        self.call("Page.navigate", url=url)
        self.wait(f"location.href == {json.dumps(url)} && document.readyState == 'complete'")

    def screenshot(self) -> bytes:
        """PNG of what is visible."""
        return base64.b64decode(self.call("Page.captureScreenshot")["data"])


@contextmanager
def browser(path: str) -> Iterator[Browser]:
    """A fresh browser without a profile, ended afterwards."""
    read_commands, commands = os.pipe()
    answers, write_answers = os.pipe()
    ends = (str(read_commands), str(write_answers))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = (
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-pipe",
            "--hide-scrollbars",
        )
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, *ends, path, *options, f"--user-data-dir={profile}"],
            pass_fds=(read_commands, write_answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_commands)
        os.close(write_answers)
        try:
            yield Browser(commands, answers)
        finally:
            process.kill()
            process.wait()
            os.close(commands)
            os.close(answers)
