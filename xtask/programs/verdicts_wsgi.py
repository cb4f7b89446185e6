"""What uwsgi serves for `cargo xtask verdicts`: it parses JSON, has a database in memory with a table of 500 rows, and compresses its answer."""
import functools
import json
import sqlite3
import threading
import zlib

here = threading.local()


def database():
    if not hasattr(here, "database"):
        here.database = sqlite3.connect(":memory:")
        here.database.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, total INTEGER)")
    return here.database


@functools.lru_cache(maxsize=300)
def words(name):
    return sorted(name.split())


def application(environ, start_response):
    asked = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
    with database() as transaction:
        transaction.execute("INSERT OR REPLACE INTO item VALUES (?, ?, ?)", (asked["key"] % 500, asked["name"], sum(asked["list"])))
        total, = transaction.execute("SELECT sum(total) FROM item WHERE name >= ?", (asked["name"],)).fetchone()
    body = json.dumps({"sum": sum(asked["list"]), "total": total, "words": words(asked["name"])}).encode()
    checked = zlib.crc32(zlib.compress(body))
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("X-Checked", str(checked))])
    return [body]
