"""Load for the services of `cargo xtask verdicts`: verdicts_load.py KIND PORT RATE COUNTED [BESIDE]

More kinds are in verdicts_more_load.py, which is started in the same way.
Clients that come and go put a service under the same load for as long as this lives. So many requests a second are sent as RATE says; how many
were answered is written to the file COUNTED. What services keep is bounded: keys are of sets that are complete within a minute, or they expire.
A request that is answered wrongly, or not at all, ends it with status 1.
"""
import contextlib
import os
import random
import socket
import struct
import sys
import threading
import time

CLIENTS = 4
counted = [0] * CLIENTS


class Client:
    """A connection. Bytes that were read and not used yet are kept."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.rest = b""
        self.begin()

    def begin(self):
        pass

    def send(self, data):
        self.socket.sendall(data)

    def more(self):
        got = self.socket.recv(65536)
        if not got:
            raise EOFError("the service closed the connection")
        self.rest += got

    def take(self, number):
        while len(self.rest) < number:
            self.more()
        taken, self.rest = self.rest[:number], self.rest[number:]
        return taken

    def line(self):
        while b"\r\n" not in self.rest:
            self.more()
        taken, self.rest = self.rest.split(b"\r\n", 1)
        return taken

    def end(self):
        self.socket.close()


def text(least, most):
    return bytes(random.choice(b"abcdefghij klmnop") for _ in range(8)) * (random.randint(least, most) // 8)


class Redis(Client):
    def ask(self, *words):
        words = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        self.send(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words))
        return self.answer()

    def answer(self):
        line = self.line()
        kind, value = line[:1], line[1:]
        if kind == b"-":
            raise ValueError(line)
        if kind == b"$":
            return None if value == b"-1" else self.take(int(value) + 2)[:-2]
        if kind == b"*":
            return [self.answer() for _ in range(int(value))]
        return value

    def request(self):
        key = random.randrange(1000)
        match random.randrange(9):
            case 0: self.ask("SET", f"plain:{key}", text(10, 500))
            case 1: self.ask("GET", f"plain:{key}")
            case 2: self.ask("SETEX", f"expires:{random.randrange(10**9)}", 2, text(10, 300))
            case 3: self.ask("LPUSH", f"list:{key % 20}", text(10, 100)), self.ask("LTRIM", f"list:{key % 20}", 0, 50)
            case 4: self.ask("HSET", f"hash:{key % 20}", key // 20, text(10, 80))
            case 5: self.ask("ZADD", f"sorted:{key % 10}", random.random(), key // 10)
            case 6: self.ask("ZRANGEBYSCORE", f"sorted:{key % 10}", 0.2, 0.4)
            case 7: self.ask("DEL", f"plain:{key}")
            case 8: self.ask("MSET", *(word for at in range(5) for word in (f"many:{(key + at) % 300}", text(10, 60))))


class Memcached(Client):
    def request(self):
        key = random.randrange(3000)
        kind = random.randrange(4)
        if kind < 2:
            value = text(10, 600)
            self.send(b"set key%d 0 %d %d\r\n%s\r\n" % (key, 2 if kind else 0, len(value), value))
            self.expect(self.line(), b"STORED")
        elif kind == 2:
            self.send(b"get key%d key%d\r\n" % (key, key + 1))
            while (line := self.line()) != b"END":
                self.expect(line, b"VALUE")
                self.take(int(line.split()[3]) + 2)
        else:
            self.send(b"delete key%d\r\n" % key)
            self.line()

    def expect(self, line, word):
        if not line.startswith(word):
            raise ValueError(line)


class Postgres(Client):
    def begin(self):
        about = b"user\0postgres\0database\0postgres\0\0"
        self.send(struct.pack("!ii", len(about) + 8, 196608) + about)
        self.till_ready()

    def till_ready(self):
        failed = None
        while True:
            kind, length = struct.unpack("!ci", self.take(5))
            body = self.take(length - 4)
            if kind == b"E":
                failed = body
            if kind == b"Z" or (kind == b"E" and b"FATAL" in body):
                if failed:
                    raise ValueError(failed)
                return

    def ask(self, query):
        query = query.encode() + b"\0"
        self.send(b"Q" + struct.pack("!i", len(query) + 4) + query)
        self.till_ready()

    def request(self):
        key = random.randrange(1000)
        match random.randrange(5):
            case 0: self.ask(f"UPDATE account SET balance = balance + 1 WHERE id = {key}")
            case 1: self.ask(f"SELECT * FROM account WHERE id BETWEEN {key} AND {key + 20} ORDER BY balance, name")
            case 2: self.ask("SELECT owner, count(*), sum(balance) FROM account GROUP BY owner ORDER BY 3")
            case 3: self.ask(f"BEGIN; INSERT INTO event VALUES ({key}, 'event'); DELETE FROM event WHERE id = {key}; COMMIT")
            case 4: self.ask(f"SELECT a.name FROM account a JOIN account b ON a.owner = b.id WHERE b.id = {key}")


class PostgresTables(Postgres):
    def request(self):
        self.ask("CREATE TABLE account (id int PRIMARY KEY, owner int, balance int, name text)")
        self.ask("CREATE TABLE event (id int, what text)")
        self.ask("INSERT INTO account SELECT n, n % 50, 0, 'name of ' || n FROM generate_series(0, 999) n")


class Http(Client):
    paths = [f"/page{number}.html" for number in range(40)] + ["/none.html"]

    def ask(self, head, body=b""):
        self.send(head.encode() + b"\r\n" + (b"Content-Length: %d\r\n" % len(body) if body else b"") + b"\r\n" + body)
        status = int(self.line().split()[1])
        length, chunked = 0, False
        while line := self.line().lower():
            length = int(line.split(b":")[1]) if line.startswith(b"content-length") else length
            chunked |= line.startswith(b"transfer-encoding: chunked")
        if not chunked:
            return status, self.take(length)
        body = b""
        while size := int(self.line(), 16):
            body += self.take(size)
            self.line()
        self.line()
        return status, body

    def request(self):
        compressed = random.choice(["Accept-Encoding: gzip\r\n", ""])
        path = random.choice(self.paths)
        status, _ = self.ask(f"GET {path}?{random.randrange(10**6)} HTTP/1.1\r\nHost: here\r\nX-User: {random.randrange(3000)}\r\n{compressed}".rstrip("\r\n"))
        if status != (404 if "none" in path else 200):
            raise ValueError(f"{status} for {path}")


class Haproxy(Http):
    paths = [f"/page{number}.html" for number in range(40)]


class Json(Http):
    def request(self):
        key = random.randrange(2000)
        body = ('{"key": %d, "name": "%s", "list": [%s]}' % (key, text(8, 80).decode(), ", ".join(str(n) for n in range(key % 50)))).encode()
        status, answer = self.ask("POST /sum HTTP/1.1\r\nHost: here\r\nContent-Type: application/json", body)
        if status != 200 or b'"sum"' not in answer:
            raise ValueError((status, answer))


class Mqtt(Client):
    def begin(self):
        name = b"client%d" % random.randrange(10**6)
        self.packet(0x10, b"\0\4MQTT\4\2\0\x3c" + struct.pack("!H", len(name)) + name)
        self.read(2)
        self.topic = b"topic/%d" % random.randrange(200)
        self.packet(0x82, b"\0\1" + struct.pack("!H", len(self.topic)) + self.topic + b"\1")
        self.read(9)

    def packet(self, kind, body):
        length, rest = b"", len(body)
        while True:
            length += bytes([rest & 127 | (128 if rest > 127 else 0)])
            rest >>= 7
            if not rest:
                break
        self.send(bytes([kind]) + length + body)

    def read(self, wanted):
        """Reads packets up to one of this kind; what is published is acknowledged."""
        while True:
            kind, length, shift = self.take(1)[0], 0, 0
            while True:
                byte = self.take(1)[0]
                length |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    break
            body = self.take(length)
            if kind >> 4 == 3 and kind >> 1 & 3:
                at = 2 + struct.unpack("!H", body[:2])[0]
                self.packet(0x40, body[at:at + 2])
            if kind >> 4 == wanted:
                return

    def request(self):
        topic = self.topic if random.random() < 0.5 else b"topic/%d" % random.randrange(200)
        quality, retained = random.choice([0, 2]), random.choice([0, 1])
        number = struct.pack("!H", random.randrange(1, 60000)) if quality else b""
        self.packet(0x30 | quality | retained, struct.pack("!H", len(topic)) + topic + number + text(10, 400))
        if quality:
            self.read(4)
        else:
            self.packet(0xC0, b"")
            self.read(13)

    def end(self):
        self.packet(0xE0, b"")
        super().end()


class Dns(Client):
    """The cache of a resolver: 600 names, of which it keeps 300, and whose answers expire."""

    def __init__(self, port):
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.settimeout(20)
        self.socket.connect(("127.0.0.1", port))

    def request(self):
        name = b"".join(bytes([len(part)]) + part for part in (b"host%d" % random.randrange(600), b"example")) + b"\0"
        number = struct.pack("!H", random.randrange(65536))
        self.send(number + b"\1\0\0\1\0\0\0\0\0\0" + name + b"\0\1\0\1")
        while True:
            answer = self.socket.recv(4096)
            if answer[:2] == number:
                break
        if answer[3] & 15 or struct.unpack("!H", answer[6:8])[0] != 1:
            raise ValueError(answer)


class Pages(Client):
    """leaky_service, of which the port is the path of a socket."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.rest = b""

    def ask(self, line):
        self.send(line.encode() + b"\n")
        while b"\n" not in self.rest:
            self.more()
        taken, self.rest = self.rest.split(b"\n", 1)
        return taken.decode()

    def request(self):
        if random.randrange(10):
            self.ask(f"PAGE page-{random.randrange(2000)}")
        elif self.ask("LOGOUT " + self.ask(f"LOGIN user-{random.randrange(10**6)}")) != "bye":
            raise ValueError("a session was not there")


def answers_names(server):
    """Another name server, that one which is asked for what the first does not know."""
    while True:
        asked, who = server.recvfrom(4096)
        end = asked.index(b"\0", 12) + 5
        life = random.randrange(2, 30)
        server.sendto(asked[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + asked[12:end] + b"\xc0\x0c\0\1\0\1" + struct.pack("!IH", life, 4) + b"\x0a\1\2\3", who)


def answers_pages(server):
    """What is behind a proxy."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + b"x" * 2000

    def serve(connection):
        rest = b""
        # A proxy ends its connections as it likes.
        with contextlib.suppress(OSError), connection:
            while got := connection.recv(65536):
                rest += got
                connection.sendall(answer * rest.count(b"\r\n\r\n"))
                rest = rest.rpartition(b"\r\n\r\n")[2]

    while True:
        threading.Thread(target=serve, args=server.accept()[:1], daemon=True).start()


def client(number, kind, port, rate):
    """Connections one after the other; the first client's are long."""
    next_at = time.monotonic()
    try:
        while True:
            connection = kind(port)
            for _ in range(random.randrange(20, 400) * (1 if number else 50)):
                connection.request()
                counted[number] += 1
                next_at = max(next_at + CLIENTS / rate, time.monotonic() - 1)
                time.sleep(max(0, next_at - time.monotonic()))
            connection.end()
    except BaseException as error:
        print(f"client {number}: {error!r}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)


def sql(rate):
    """Statements for sqlite3 on standard output, for as long as somebody reads them: a table of at most 2000 rows."""
    out = sys.stdout
    # Without waiting for the disk: else the table is not full for minutes.
    out.write("PRAGMA synchronous = OFF;\nPRAGMA journal_mode = MEMORY;\n")
    out.write("CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, price REAL);\nCREATE INDEX by_name ON item(name);\n")
    made, next_at = 0, time.monotonic()
    while True:
        key = random.randrange(2000)
        out.write(f"INSERT OR REPLACE INTO item VALUES ({key}, '{text(10, 200).decode()}', {random.random()});\n")
        out.write(f"UPDATE item SET price = price + 1 WHERE id = {key // 2};\n")
        if key % 10 == 0:
            out.write("SELECT count(*), sum(price), max(name) FROM item WHERE name > 'c';\n")
        if key % 5 == 0 and len(sys.argv) > 3 and sys.argv[3] == "words":
            out.write(f"SELECT words(name) FROM item WHERE id BETWEEN {key} AND {key + 10};\n")
        if key == 0:
            out.write("DELETE FROM item WHERE id % 2;\n")
        out.flush()
        next_at = max(next_at + 1 / rate, time.monotonic() - 1)
        time.sleep(max(0, next_at - time.monotonic()))


KINDS = {"redis": Redis, "memcached": Memcached, "postgres": Postgres, "http": Http, "haproxy": Haproxy, "json": Json, "mqtt": Mqtt, "dns": Dns}
BESIDE = {"dns": answers_names, "haproxy": answers_pages}


def main():
    kind = sys.argv[1]
    if kind == "sql":
        return sql(float(sys.argv[2]))
    if kind == "tables":
        return PostgresTables(int(sys.argv[2])).request()
    rate, file = float(sys.argv[3]), sys.argv[4]
    port = sys.argv[2] if kind == "pages" else int(sys.argv[2])
    if kind in BESIDE:
        # It listens before anybody asks.
        if kind == "dns":
            server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            server.bind(("127.0.0.1", int(sys.argv[5])))
        else:
            server = socket.create_server(("127.0.0.1", int(sys.argv[5])), backlog=64)
        threading.Thread(target=BESIDE[kind], args=(server,), daemon=True).start()
    for number in range(CLIENTS):
        threading.Thread(target=client, args=(number, Pages if kind == "pages" else KINDS[kind], port, rate), daemon=True).start()
    while True:
        time.sleep(0.5)
        with open(file + ".part", "w") as out:
            out.write(str(sum(counted)))
        os.replace(file + ".part", file)


if __name__ == "__main__":
    main()
