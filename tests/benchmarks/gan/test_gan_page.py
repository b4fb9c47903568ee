# SPDX-License-Identifier: MIT
"""The editing page: its requests, and the page itself in a headless Chromium where there is one."""

import base64
import io
import json
import re
import socket
import threading
from http.client import HTTPConnection

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from algo.anycost.architecture import compute_macs
from algo.anycost.editing import moved
from benchmarks.cli import app
from benchmarks.gan.page import PAGE, open_page
from tests.benchmarks.gan import chromium


@pytest.fixture(scope="module")
def server(anycost_run):
    with open_page(anycost_run, 0, 0.25, 8, 3, 1, perceptual=False) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server, path: str, body=None, host: str = "localhost"):
    """Status and content of one request."""
    connection = HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
    content = body if isinstance(body, bytes) or body is None else json.dumps(body)
    connection.request("GET" if body is None else "POST", path, content, {"Host": host})
    answer = connection.getresponse()
    status, data = answer.status, answer.read()
    connection.close()
    return status, data


def pixels(shown) -> torch.Tensor:
    data = base64.b64decode(shown["image"].removeprefix("data:image/png;base64,"))
    with Image.open(io.BytesIO(data)) as picture:
        return torch.tensor(list(picture.tobytes())).reshape(picture.height, picture.width, 3)


def as_pixels(image: torch.Tensor) -> torch.Tensor:
    return ((image[0].clamp(-1, 1) + 1) * 127.5).round().long().permute(1, 2, 0)


def test_render_is_what_the_generator_makes(server):
    styles = json.loads(ask(server, "/random", {"seed": 7})[1])["styles"]
    request = {"styles": styles, "strengths": [0, -2.5, 1], "ratio": 0.25, "resolution": 8, "full": True}
    status, data = ask(server, "/render", request)
    found = json.loads(data)
    assert status == 200, found
    editor = server.editor
    shape, sub = editor.generator.config, editor.sub(0.25, 8)
    edited = moved(
        torch.tensor([styles]), editor.directions[[1, 2]], torch.tensor([-2.5, 1])
    )  # strength 0 moves nothing
    with torch.no_grad():
        small, full = editor.generator(edited, sub), editor.generator(edited)
    assert (pixels(found["preview"]) - as_pixels(small)).abs().max() <= 1
    assert (pixels(found["full"]) - as_pixels(full)).abs().max() <= 1
    assert found["preview"]["macs"] == compute_macs(shape, sub) < found["full"]["macs"]
    assert found["preview"]["milliseconds"] > 0 and found["note"] is None and found["mse"] > 0
    del request["full"]
    assert set(json.loads(ask(server, "/render", request)[1])) == {"preview", "note"}


def test_project_streams_its_steps(server, pictures):
    status, data = ask(server, "/project", (pictures / "2.png").read_bytes())
    lines = [json.loads(line) for line in data.splitlines()]
    assert status == 200 and [line["step"] for line in lines[:-1]] == [1, 2, 3]
    assert lines[0]["n_steps"] == 3 and torch.tensor(lines[-1]["styles"]).shape == (6, 8)


@pytest.mark.parametrize(
    "path, body, message",
    [
        ("/project", b"no picture", "what was dropped is not a picture"),
        ("/render", b"{", "a request must be JSON"),
        ("/render", b"[]", "a request must be a JSON object"),
        ("/render", {"ratio": 0.3, "resolution": 8}, "ratio must be one of"),
        ("/render", {"ratio": 0.25, "resolution": 1e999}, "resolution must be one of"),
        ("/render", {"ratio": 0.25, "resolution": 8}, "the request has no styles"),
        (
            "/render",
            {"ratio": 0.25, "resolution": 8, "styles": [[1]], "strengths": [1]},
            "styles must be 6 x 8",
        ),
        ("/random", {"seed": -1}, "seed must be in 0..2^31 - 1, not -1"),
    ],
)
def test_bad_requests_are_one_line(server, path, body, message):
    status, data = ask(server, path, body)
    assert status == 400 and message in json.loads(data)["error"]


def test_bad_styles_are_refused(server):
    styles = json.loads(ask(server, "/random", {"seed": 0})[1])["styles"]
    good = {"styles": styles, "strengths": [1.0], "ratio": 1.0, "resolution": 16}
    assert ask(server, "/render", good)[0] == 200
    for change, message in (
        ({"strengths": ["a"]}, "styles and strengths must be numbers"),
        ({"strengths": [float("nan")]}, "styles and strengths must be finite"),
        ({"strengths": [0] * 9}, "strengths must be a list of at most 8 numbers"),
    ):
        status, data = ask(server, "/render", good | change)
        assert status == 400 and message in json.loads(data)["error"]


def test_other_hosts_and_places_are_refused(server):
    assert ask(server, "/", host="evil.example")[0] == 403
    assert ask(server, "/render", {}, host="evil.example:80")[0] == 403
    with socket.create_connection(server.server_address) as raw:
        raw.sendall(b"GET / HTTP/1.0\r\nHost: evil.example\r\n\r\n")
        answer = b"".join(iter(lambda: raw.recv(1 << 16), b""))
    assert answer.count(b"HTTP/1.0") == 1 and b"<!DOCTYPE" not in answer
    assert ask(server, "/etc/passwd")[0] == 404 and ask(server, "/other", {})[0] == 404


def test_the_page_needs_nothing_from_outside():
    """No address but those of this server, no library."""
    text = PAGE.read_text()
    assert not re.findall(r"https?:|src=\"|@import|url\(", text)


def test_bad_options_are_one_line(anycost_run, server):
    taken = server.server_address[1]
    for options, message in (
        (["--port", str(taken)], f"port {taken} cannot be used"),
        (["--port", "70000"], "port 70000 cannot be used: must be in 0..65535"),
        (["--preview", "2"], "ratio must be above 0 and at most 1, not 2"),
        (["--steps", "0"], "n_steps must be at least 1, not 0"),
        (["--image", "a.png"], "--page takes its picture in the browser: leave --image out"),
    ):
        result = CliRunner().invoke(app, ["edit", str(anycost_run), "--page", *options])
        assert result.exit_code == 2 and message in result.stderr, result.output
        assert len(result.stderr.strip().splitlines()) == 1


def test_in_a_browser(server, pictures):
    """Drop a picture, drag, change the preview, ask for full quality."""
    path = chromium.find()
    if path is None:
        pytest.skip(f"no Chromium: none of {', '.join(chromium.NAMES)} is on the path")
    picture = base64.b64encode((pictures / "3.png").read_bytes()).decode()
    with chromium.browser(path) as page:
        page.open(server.url)
        page.wait("document.querySelectorAll('.slider').length == 8")
        assert page.js("$('render').disabled") is True
        page.js(
            f"fetch('data:image/png;base64,{picture}').then(r => r.blob()).then(blob => {{"
            "const data = new DataTransfer(); data.items.add(new File([blob], '3.png', {type: 'image/png'}));"
            "$('drop').dispatchEvent(new DragEvent('drop', {dataTransfer: data})); })"
        )
        page.wait("$('full').src && !$('full-frame').classList.contains('stale')")
        assert page.js("$('progress').value") == 1 and page.js("$('preview').naturalWidth") == 8
        assert page.js("$('full').naturalWidth") == 16
        before = page.js("[$('preview').src, $('full').src]")
        drag = "s = document.querySelectorAll('.slider input')[0]; for (const v of [1, 2, 3, 4])"
        page.js(f"{{ const {drag} {{ s.value = v; s.oninput(); }} }}")
        page.wait(f"!busy && $('preview').src != {json.dumps(before[0])}")
        assert page.js("$('full').src") == before[1]  # dragging costs previews only
        assert page.js("$('full-frame').classList.contains('stale')") is True
        assert page.js("document.querySelector('.slider output').value") == "4.0"
        page.js("{ $('resolution').value = '16'; $('resolution').onchange(); }")
        page.wait("$('preview').naturalWidth == 16")
        page.js("$('render').click()")
        page.wait("!$('full-frame').classList.contains('stale')")
        assert page.js("$('full').src") != before[1]
        times = page.js("[$('preview-time').textContent, $('full-time').textContent]")
        assert all(re.fullmatch(r"\d+\.\d ms, 16 px", time) for time in times), times
        assert "preview differs by 0." in page.js("$('full-facts').textContent")
        assert page.js("$('message').textContent") == ""
        assert page.screenshot().startswith(b"\x89PNG")
