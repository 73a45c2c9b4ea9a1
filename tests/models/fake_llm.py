"""A fake of a program that serves a model, as a user would start it; its options are the ways in which it misbehaves.

``python tests/models/fake_llm.py --port N`` answers chat requests. It writes its process id and those of its children
into files, so that tests can see that none of them is left.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REPLY = "<think>a</think> <response>That is a lot to carry.</response>"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="m")
    parser.add_argument("--pids", type=Path, help="Folder: a file for every process, named by its id.")
    parser.add_argument("--wait-s", type=float, default=0.0, help="Before it listens.")
    parser.add_argument("--loading", type=int, default=0, help="Answer so many requests with 503 first.")
    parser.add_argument("--fail", type=int, help="Leave with this code at once.")
    parser.add_argument("--die-after", type=int, help="Die at this chat request.")
    parser.add_argument("--once", type=Path, help="Die only if this file is not there yet.")
    parser.add_argument("--never", action="store_true", help="Never listen.")
    parser.add_argument("--bound", action="store_true", help="Meet a port that is taken.")
    parser.add_argument("--children", action="store_true", help="Have a child, and one in a session of its own.")
    parser.add_argument("--stubborn", action="store_true", help="Ignore SIGTERM, as its children do.")
    parser.add_argument("--latency-s", type=float, default=0.0)
    return parser.parse_args()


def note(folder: Path | None, pid: int, what: str = "") -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / str(pid)).write_text(what or os.environ.get("CUDA_VISIBLE_DEVICES", "-"))


class Model:
    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked, self.n, self.lock = asked, 0, threading.Lock()

    def is_spared(self) -> bool:
        if self.asked.once is None:
            return False
        if self.asked.once.exists():
            return True
        self.asked.once.touch()
        return False

    def answer(self, body: dict) -> tuple[int, dict]:
        with self.lock:
            self.n += 1
            n = self.n
        if n <= self.asked.loading:
            return 503, {"error": {"message": "Loading model"}}
        if self.asked.die_after is not None and n >= self.asked.die_after and not self.is_spared():
            sys.stderr.write("\x1b[31mCUDA error:\x1b[0m out of memory\n")
            sys.stderr.flush()
            os._exit(7)
        if body["model"] != self.asked.model:
            return 404, {"error": {"message": f"The model {body['model']} does not exist."}}
        time.sleep(self.asked.latency_s)
        message = {"role": "assistant", "content": REPLY}
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        return 200, {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}


def main() -> None:
    asked = options()
    if asked.stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note(asked.pids, os.getpid())
    if asked.children:
        for alone in (False, True):
            child = subprocess.Popen(["sleep", "600"], start_new_session=alone)
            note(asked.pids, child.pid)
    if asked.fail is not None:
        sys.stderr.write("error: unrecognized arguments: --bogus\n")
        sys.exit(asked.fail)
    if asked.bound:
        socket.create_server(("127.0.0.1", asked.port)).detach()
    time.sleep(600 if asked.never else asked.wait_s)
    model = Model(asked)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send(500, {"error": "no list of models"})

        def do_POST(self) -> None:
            self.send(*model.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

        def send(self, status: int, body: dict) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    ThreadingHTTPServer(("127.0.0.1", asked.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
