# SPDX-License-Identifier: MIT
"""``quartet edit --page``: a page on this machine where dragging a slider moves a picture along a direction.

One HTML file without external resources, served by the standard library (Gradio 6 wants another Pillow than
the rest of the project). The server keeps nothing between requests: the browser holds the styles and sends
them along.
"""

import base64
import io
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from algo.anycost.architecture import RATIOS, compute_macs
from algo.anycost.editing import moved
from algo.anycost.projection import ProjectionConfig
from algo.gan.data import read_picture
from benchmarks.gan.edit import Editor, Rendered, load_editor

PAGE = Path(__file__).with_name("edit.html")
HOSTS = ("127.0.0.1", "localhost")
"""Names that a request may use: a page elsewhere cannot reach this server under a name of its own."""
MAX_BODY_BYTES = 32_000_000
MAX_DIRECTIONS = 8
"""Principal components that the page offers."""
N_TIMED = 5
"""Renderings behind the time of a full image; a preview is rendered once, as a user waits for it."""


class PageServer(ThreadingHTTPServer):
    """Serves one editor on the loopback interface; OSError where the port is taken. 0 takes any free port.

    Parameters: ``ratio`` and ``resolution`` of the preview at the start, ``n_steps`` of a projection.
    """

    daemon_threads = True

    def __init__(self, editor: Editor, port: int, ratio: float, resolution: int | None, n_steps: int) -> None:
        self.editor, self.n_steps = editor, n_steps
        self.first = editor.sub(ratio, resolution)
        self.ratio = ratio
        self.ratios = sorted({*RATIOS, ratio})
        self.resolutions = sorted({*editor.resolutions, self.first.resolution})
        self.lock = Lock()  # one rendering at a time, or their times would say nothing
        try:
            super().__init__((HOSTS[0], port), Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or "must be in 0..65535"
            raise ValueError(f"port {port} cannot be used: {reason}") from None

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{HOSTS[0]}:{self.server_address[1]}/"

    # ---- what the page asks for; plain data in and out ----

    def about(self) -> dict[str, Any]:
        """What the page shows before there is a picture."""
        shape = self.editor.generator.config
        return {
            "name": self.editor.name,
            "resolution": shape.resolution,
            "ratio": self.ratio,
            "preview_resolution": self.first.resolution,
            "ratios": self.ratios,
            "resolutions": self.resolutions,
            "n_directions": min(MAX_DIRECTIONS, len(self.editor.directions)),
            "full_macs": compute_macs(shape, shape.full),
            "start": "encoder" if self.editor.encoder else "mean w",
        }

    def random(self, request: dict[str, Any]) -> dict[str, Any]:
        """Styles of a random z, by seed."""
        seed = request["seed"]
        if not isinstance(seed, int) or not 0 <= seed < 2**31:
            raise ValueError(f"seed must be in 0..2^31 - 1, not {seed}")
        z = torch.randn(
            1, self.editor.generator.config.style_size, generator=torch.Generator().manual_seed(seed)
        )
        with torch.no_grad():
            return {"styles": self.editor.generator.styles(z)[0].tolist()}

    def render(self, request: dict[str, Any]) -> dict[str, Any]:
        """The edited styles by the preview's sub-generator; with ``full`` also by the whole, and how far."""
        editor = self.editor
        for name, allowed in (("ratio", self.ratios), ("resolution", self.resolutions)):
            if request[name] not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, not {request[name]!r}")
        sub = editor.sub(request["ratio"], request["resolution"])
        styles = self._edited(request)
        with self.lock:
            preview = editor.render(styles, sub, N_TIMED if request.get("full") else 1)
            answer: dict[str, Any] = {"preview": _shown(preview), "note": editor.note(sub)}
            if request.get("full"):
                full = editor.render(styles, editor.generator.full, N_TIMED)
                answer |= {"full": _shown(full), "mse": editor.distance(preview.image, full.image)["mse"]}
        return answer

    def _edited(self, request: dict[str, Any]) -> Tensor:
        shape = self.editor.generator.config
        given = request["styles"], request["strengths"]
        try:
            styles, strengths = (torch.tensor(values, dtype=torch.float32) for values in given)
        except (ValueError, TypeError, RuntimeError):
            raise ValueError("styles and strengths must be numbers") from None
        if styles.shape != (shape.n_styles, shape.style_size):
            raise ValueError(f"styles must be {shape.n_styles} x {shape.style_size}, not {styles.shape}")
        if strengths.ndim != 1 or len(strengths) > len(self.editor.directions):
            raise ValueError(f"strengths must be a list of at most {len(self.editor.directions)} numbers")
        if not (styles.isfinite().all() and strengths.isfinite().all()):
            raise ValueError("styles and strengths must be finite")
        return moved(styles[None], self.editor.directions[: len(strengths)], strengths)


class Handler(BaseHTTPRequestHandler):
    """GET /, GET /about; POST /project (a picture's bytes; lines of JSON come back), /random, /render."""

    server: PageServer

    def do_GET(self) -> None:
        """The page and what it is about."""
        if not self._allowed():
            return
        if self.path == "/":
            self._send(200, PAGE.read_bytes(), "text/html; charset=utf-8")
        elif self.path == "/about":
            self._send_json(200, self.server.about())
        else:
            self._send_json(404, {"error": f"nothing is at {self.path}"})

    def do_POST(self) -> None:
        """What the page asks for; 400 and one line for input that is refused."""
        if not self._allowed():
            return
        tasks = {"/random": self.server.random, "/render": self.server.render}
        try:
            body = self._body()
            if self.path == "/project":
                self._project(body)
            elif self.path in tasks:
                self._send_json(200, tasks[self.path](_fields(body)))
            else:
                self._send_json(404, {"error": f"nothing is at {self.path}"})
        except ValueError as error:
            self._send_json(400, {"error": " ".join(str(error).split())})
        except ConnectionError:
            pass  # the browser went away

    def _project(self, body: bytes) -> None:
        """A line for every step, then the styles."""
        editor = self.server.editor
        image = read_picture(body, "what was dropped", editor.generator.config.resolution)
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.end_headers()
        styles, _ = editor.project(
            image,
            self.server.n_steps,
            lambda step, n, loss: self._line({"step": step, "n_steps": n, "loss": loss}),
        )
        self._line({"styles": styles[0].tolist()})

    def _line(self, data: dict[str, Any]) -> None:
        self.wfile.write(json.dumps(data).encode() + b"\n")

    def _allowed(self) -> bool:
        host = (self.headers.get("Host") or "").rsplit(":", 1)[0]
        if host not in HOSTS:
            self._send_json(403, {"error": f"host must be {' or '.join(HOSTS)}, not {host}"})
        return host in HOSTS

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length") or ""
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            raise ValueError(
                f"a request may have {MAX_BODY_BYTES} bytes, not {length or 'an unknown number'}"
            )
        return self.rfile.read(int(length))

    def _send_json(self, status: int, data: dict[str, Any]) -> None:
        self._send(status, json.dumps(data).encode(), "application/json")

    def _send(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """A drag makes hundreds of requests: nothing is printed."""


def open_page(
    checkpoint: Path, port: int, ratio: float, resolution: int | None, n_steps: int, n_threads: int,
    *, perceptual: bool,
) -> PageServer:  # fmt: skip
    """A server ready to serve; ValueError or OSError, one line, for bad input."""
    ProjectionConfig(n_steps=n_steps)
    torch.set_num_threads(n_threads)
    return PageServer(load_editor(checkpoint, perceptual=perceptual), port, ratio, resolution, n_steps)


def _fields(body: bytes) -> dict[str, Any]:
    try:
        request = json.loads(body)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError("a request must be JSON") from None
    if not isinstance(request, dict):
        raise ValueError("a request must be a JSON object")
    return _Fields(request)


class _Fields(dict[str, Any]):
    def __missing__(self, name: str) -> Any:
        raise ValueError(f"the request has no {name}")


def _shown(rendered: Rendered) -> dict[str, Any]:
    from PIL import Image

    pixels = ((rendered.image[0] + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return {
        "image": "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode(),
        "milliseconds": 1e3 * rendered.seconds,
        "macs": rendered.macs,
        "resolution": rendered.image.shape[-1],
    }
