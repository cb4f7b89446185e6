"""More kinds of load for the services of `cargo xtask verdicts`, beside those of verdicts_load.py: verdicts_more_load.py KIND PORT RATE COUNTED [BESIDE]"""
import ftplib
import io
import json
import os
import random
import ssl
import struct
import sys
import threading

# The sources are not the place for what is compiled of them.
sys.dont_write_bytecode = True
import verdicts_load as load
from verdicts_load import Client, Haproxy, text


class Each:
    """Beside a client: each request is on a connection of its own, which the service closes."""

    def __init__(self, port):
        self.port = port

    def request(self):
        super().__init__(self.port)
        super().request()
        super().end()

    def end(self):
        pass


class Once(Each, Haproxy):
    """HTTP to a proxy that keeps no connection."""


class Tls(Haproxy):
    """Encrypted; one request of ten is on a new connection."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE

    def __init__(self, port):
        self.port = port
        super().__init__(port)

    def begin(self):
        self.socket = self.context.wrap_socket(self.socket)

    def request(self):
        if random.randrange(10) == 0:
            self.end()
            self.__init__(self.port)
        super().request()


class Page(Client):
    """A page of php, asked as a web server asks."""

    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "verdicts_page.php")

    def request(self):
        key = random.randrange(2000)
        body = json.dumps({"key": key, "name": text(8, 80).decode(), "list": list(range(key % 50))}).encode()
        about = {"SCRIPT_FILENAME": self.script, "REQUEST_METHOD": "POST", "CONTENT_TYPE": "application/json", "CONTENT_LENGTH": str(len(body))}
        names = b"".join(bytes([len(name)]) + struct.pack("!I", len(value) | 1 << 31) + name.encode() + value.encode() for name, value in about.items())
        self.send(self.record(1, struct.pack("!HB5x", 1, 0)) + self.record(4, names) + self.record(4) + self.record(5, body) + self.record(5))
        answer = b""
        while True:
            kind, length, padding = struct.unpack("!xBxxHBx", self.take(8))
            content = self.take(length + padding)[:length]
            if kind == 3:
                break
            answer += content
        if b'"sum"' not in answer:
            raise ValueError(answer)

    def record(self, kind, content=b""):
        return struct.pack("!BBHHxx", 1, kind, 1, len(content)) + content


class FastCgi(Each, Page):
    """As web servers do that keep no connections to it: a process of php's ends after so many requests, and its connections with it."""


class Jobs(Client):
    """A queue of about 1,000 jobs: the more there are, the rarer are new ones. Some wait a second or two; some are given back."""

    kept, lock = 0, threading.Lock()

    def begin(self):
        for number in range(20):
            self.ask(b"watch tube-%d" % number, b"WATCHING")

    def ask(self, line, *wanted):
        self.send(line + b"\r\n")
        answer = self.line().split()
        if answer[0] not in wanted:
            raise ValueError(answer)
        return answer

    def changed(self, by):
        with Jobs.lock:
            Jobs.kept += by

    def request(self):
        if random.random() > Jobs.kept / 2000:
            self.ask(b"use tube-%d" % random.randrange(20), b"USING")
            body = text(16, 2000)
            self.ask(b"put %d %d 60 %d\r\n" % (random.randrange(1000), random.choice([0, 0, 1, 2]), len(body)) + body, b"INSERTED")
            return self.changed(1)
        answer = self.ask(b"reserve-with-timeout 0", b"RESERVED", b"TIMED_OUT")
        if answer[0] == b"RESERVED":
            self.take(int(answer[2]) + 2)
            if random.randrange(10) == 0:
                self.ask(b"release %s 5 1" % answer[1], b"RELEASED")
            else:
                self.ask(b"delete %s" % answer[1], b"DELETED")
                self.changed(-1)


class Irc(Client):
    """People who talk in 30 channels, join and leave them, and go."""

    def begin(self):
        self.name = "n" + str(random.randrange(10**8))
        self.send(f"NICK {self.name}\r\nUSER {self.name} 0 * :somebody\r\n".encode())
        self.till("376", "422")
        self.channels = []

    def till(self, *wanted):
        """Reads what others say, too, up to the answer."""
        while True:
            words = self.line().decode().split()
            if words[0] == "PING":
                self.send(f"PONG {words[1]}\r\n".encode())
            if words[0] == "ERROR" or words[1][0] in "45" and words[1] not in wanted:
                raise ValueError(words)
            if words[1] in wanted:
                return

    def request(self):
        if not self.channels or (random.randrange(8) == 0 and len(self.channels) < 8):
            channel = f"#channel{random.randrange(30)}"
            self.channels += [channel] if channel not in self.channels else []
            self.ask(f"JOIN {channel}")
            return
        channel = random.choice(self.channels)
        match random.randrange(8):
            case 0: self.ask(f"WHO {channel}")
            case 1: self.ask(f"NAMES {channel}")
            case 2: self.ask(f"WHOIS {self.name}")
            case 3:
                self.channels.remove(channel)
                self.ask(f"PART {channel} :bye")
            case _: self.ask(f"PRIVMSG {channel} :{text(8, 300).decode()}")

    def ask(self, line):
        """An answer to the ping is one to the line before."""
        self.send(f"{line}\r\nPING {self.name}\r\n".encode())
        self.till("PONG")

    def end(self):
        self.send(b"QUIT :bye\r\n")
        super().end()


def ber(tag, *parts):
    body = b"".join(parts)
    length = bytes([len(body)]) if len(body) < 128 else b"\x82" + struct.pack("!H", len(body))
    return bytes([tag]) + length + body


class Ldap(Client):
    """A directory of 500 people: they are looked for and changed, and some come and go."""

    def begin(self):
        self.number = 0
        self.ask(ber(0x60, b"\2\1\3", ber(4, b"cn=admin,dc=example"), ber(0x80, b"secret")))

    def ask(self, operation, wanted=(0,)):
        """Sends an operation, reads what is found and the result; gives how many were found."""
        self.number += 1
        self.send(ber(0x30, ber(2, struct.pack("!I", self.number)), operation))
        found = 0
        while True:
            _, message = self.element()
            # Its number, then the answer.
            answer = message[2 + message[1]:]
            if answer[0] in (0x64, 0x73):
                found += 1
                continue
            result = answer[answer.index(b"\x0a\1") + 2]
            if result not in wanted:
                raise ValueError(answer)
            return found

    def element(self):
        tag, length = self.take(2)
        if length > 127:
            length = int.from_bytes(self.take(length & 127), "big")
        return tag, self.take(length)

    def request(self):
        key = random.randrange(500)
        name = b"cn=person%d,dc=example" % key
        match random.randrange(6):
            case 0 | 1 | 2:
                word = random.choice([ber(0xA3, ber(4, b"cn"), ber(4, b"person%d" % key)), ber(0xA4, ber(4, b"sn"), ber(0x30, ber(0x80, b"name%d" % (key % 50))))])
                found = self.ask(ber(0x63, ber(4, b"dc=example"), b"\x0a\1\2\x0a\1\0\2\1\0\2\1\0\1\1\0", word, ber(0x30)))
                if not found:
                    raise ValueError(word)
            case 3:
                change = ber(0x30, b"\x0a\1\2", ber(0x30, ber(4, b"description"), ber(0x31, ber(4, text(8, 400)))))
                self.ask(ber(0x66, ber(4, name), ber(0x30, change)))
            case 4:
                guest = b"guest%d" % random.randrange(10**8)
                name = b"cn=%s,dc=example" % guest
                about = {b"objectClass": b"person", b"cn": guest, b"sn": b"guest"}
                self.ask(ber(0x68, ber(4, name), ber(0x30, *(ber(0x30, ber(4, kind), ber(0x31, ber(4, value))) for kind, value in about.items()))))
                self.ask(ber(0x4A, name))
            case 5:
                # A wrong password.
                self.ask(ber(0x60, b"\2\1\3", ber(4, name), ber(0x80, b"wrong")), (49,))
                self.begin()

    def end(self):
        self.send(ber(0x30, ber(2, b"\1"), ber(0x42)))
        super().end()


class Syslog(Client):
    """Lines that the service sends on to another, which is here, too."""

    waiting = {}

    def request(self):
        token, came = random.randrange(10**12), threading.Event()
        self.waiting[token] = came
        place = f"<{random.choice([13, 30, 86])}>Oct 11 22:14:15 host{random.randrange(20)} program{random.randrange(20)}[{random.randrange(2000)}]:"
        self.send(f"{place} token={token} user={random.randrange(1000)} {text(8, 400).decode()}\n".encode())
        if not came.wait(20):
            raise ValueError("a line was not sent on")


def answers_syslog(server):
    """Where the lines are sent on to."""

    def serve(connection):
        for line in connection.makefile("rb"):
            Syslog.waiting.pop(int(line.partition(b"token=")[2].split()[0].strip(b'",')), threading.Event()).set()

    while True:
        threading.Thread(target=serve, args=server.accept()[:1], daemon=True).start()


class Ftp:
    """Files that are fetched, listed and stored."""

    def __init__(self, port):
        self.ftp = ftplib.FTP()
        self.ftp.connect("127.0.0.1", port, timeout=20)
        self.ftp.login("user", "secret")

    def request(self):
        key = random.randrange(40)
        match random.randrange(6):
            case 0: self.ftp.nlst()
            case 1: self.ftp.storbinary(f"STOR stored{key}", io.BytesIO(text(8, 4000)))
            case 2:
                self.ftp.voidcmd("TYPE I")
                self.ftp.size(f"page{key}.html")
            case 3: self.ftp.retrlines("LIST", lambda line: None)
            case _: self.ftp.retrbinary(f"RETR page{key}.html", lambda data: None)

    def end(self):
        self.ftp.quit()


load.KINDS |= {"once": Once, "tls": Tls, "fastcgi": FastCgi, "jobs": Jobs, "irc": Irc, "ldap": Ldap, "syslog": Syslog, "ftp": Ftp}
load.BESIDE |= {"once": load.answers_pages, "tls": load.answers_pages, "syslog": answers_syslog}
load.main()
