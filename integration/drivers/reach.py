"""What an ordinary application does through one port, with psycopg: exits 0 and prints `ok`, or raises.

usage: reach.py URL
"""

import sys
import threading
import time

import psycopg

url = sys.argv[1]


def fails_with(sqlstate, act):
    try:
        act()
    except psycopg.Error as error:
        # A refused connection has no SQLSTATE field in libpq; its message is all there is.
        assert error.sqlstate in (sqlstate, None), f"{error.sqlstate}: {error}"
        return str(error)
    raise AssertionError(f"did not fail with {sqlstate}")


with psycopg.connect(url, autocommit=True) as connection:
    connection.execute("DROP TABLE IF EXISTS reach_py")
    connection.execute("CREATE TABLE reach_py (id int PRIMARY KEY, word text)")

    # Extended protocol, with parameters; often enough that psycopg prepares it on the server.
    for i in range(12):
        connection.execute("INSERT INTO reach_py VALUES (%s, %s)", (i, f"word {i}"))
    assert connection.execute("SELECT count(*) FROM reach_py").fetchone() == (12,)

    # Binary results.
    cursor = connection.cursor(binary=True)
    assert cursor.execute("SELECT id, word FROM reach_py WHERE id = %s", (7,)).fetchone() == (7, "word 7")

    # A transaction that commits, one that is rolled back, and a savepoint.
    with connection.transaction():
        connection.execute("INSERT INTO reach_py VALUES (100, 'kept')")
        try:
            with connection.transaction():
                connection.execute("INSERT INTO reach_py VALUES (101, 'dropped')")
                raise psycopg.Rollback()
        except psycopg.Rollback:
            pass
    assert connection.execute("SELECT count(*) FROM reach_py WHERE id >= 100").fetchone() == (1,)

    # COPY in and out.
    with connection.cursor().copy("COPY reach_py FROM STDIN") as copy:
        for i in range(1000, 3000):
            copy.write_row((i, "x" * 100))
    with connection.cursor().copy("COPY reach_py TO STDOUT") as copy:
        assert sum(1 for _ in copy.rows()) == 12 + 1 + 2000

    # An error keeps the session.
    fails_with("23505", lambda: connection.execute("INSERT INTO reach_py VALUES (7, 'again')"))
    assert connection.execute("SELECT 1").fetchone() == (1,)

    # A pipeline.
    with connection.pipeline():
        first = connection.execute("SELECT %s::int", (41,))
        second = connection.execute("SELECT %s::int", (42,))
        assert (first.fetchone(), second.fetchone()) == ((41,), (42,))

    # A server-side cursor.
    with connection.transaction(), connection.cursor(name="some") as some:
        some.itersize = 100
        some.execute("SELECT id FROM reach_py ORDER BY id")
        assert sum(1 for _ in some) == 2013

    # Cancel.
    threading.Timer(0.3, connection.cancel).start()
    began = time.monotonic()
    fails_with("57014", lambda: connection.execute("SELECT pg_sleep(30)"))
    assert time.monotonic() - began < 10, "the cancel came too late"
    assert connection.execute("SELECT 2").fetchone() == (2,)

    # The session's own notices and notifications.
    heard = []
    connection.add_notice_handler(lambda notice: heard.append(notice.message_primary))
    connection.execute("DO $$ BEGIN RAISE NOTICE 'hear me'; END $$")
    assert heard == ["hear me"], heard
    connection.execute("LISTEN reach")
    connection.execute("NOTIFY reach, 'ping'")
    assert [n.payload for n in connection.notifies(timeout=5, stop_after=1)] == ["ping"]

with psycopg.connect(url, sslmode="require") as connection:
    assert connection.pgconn.ssl_in_use, "TLS was asked for and not used"
    assert connection.execute("SELECT 3").fetchone() == (3,)

message = fails_with("3D000", lambda: psycopg.connect(url.rsplit("/", 1)[0] + "/nowhere"))
assert "nowhere" in message, message
message = fails_with("28P01", lambda: psycopg.connect(url, password="wrong"))
assert "password authentication failed" in message, message

print("ok")
