"""llama.cpp's own server out of the wheel ``xllamacpp``, with the options of ``llama-server`` that esckit's tests use.

Run: ``PYTHON tests/models/llama_server.py --model FILE.gguf --port PORT``, PYTHON of an environment that has the wheel
(docs/servers.md). It listens on 127.0.0.1 until it is ended.
"""

import argparse
import signal

from xllamacpp import CommonParams, Server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--parallel", type=int, default=1, help="Requests at once.")
    parser.add_argument("--ctx-size", type=int, default=4096, help="Tokens that all requests at once share.")
    parser.add_argument("--threads", type=int, default=-1)
    asked = parser.parse_args()
    params = CommonParams()
    params.model.path = asked.model
    params.hostnames = [asked.host]
    params.port = asked.port
    params.n_parallel = asked.parallel
    params.n_ctx = asked.ctx_size
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = asked.threads
    server = Server(params)  # it listens as long as somebody holds it
    signal.pause()
    del server


if __name__ == "__main__":
    main()
