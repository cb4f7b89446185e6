"""Programs of python for `cargo xtask verdicts`: verdicts_server.py http PORT | lru SECONDS | ctypes SECONDS LIBRARY"""
import ctypes
import functools
import json
import os
import random
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

answers = {}
lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with lock:
            answer = answers.setdefault(asked["key"], {"sum": sum(asked["list"]), "name": asked["name"]})
            if len(answers) > 500:
                del answers[next(iter(answers))]
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


@functools.lru_cache(maxsize=800)
def expensive(number):
    return {"number": number, "text": str(number) * 20, "digits": [int(digit) for digit in str(number)]}


def until(end, each):
    """Does this again and again, and ends without releasing anything."""
    turn = 0
    while time.monotonic() < end:
        each(turn)
        turn += 1
        time.sleep(0.0005)
    print("turns", turn, flush=True)
    os._exit(0)


def main():
    if sys.argv[1] == "http":
        return Server(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
    end = time.monotonic() + float(sys.argv[2])
    if sys.argv[1] == "lru":
        until(end, lambda turn: [expensive(random.randrange(3000)) for _ in range(5)])
    library = ctypes.CDLL(sys.argv[3])
    until(end, lambda turn: [library.parse_header(b"a header of words " * (1 + turn % 9), turn), expensive(random.randrange(3000))])


main()
