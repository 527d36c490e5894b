"""Holds sessions of ordinary drivers and uses them until a file appears: sessions.py URL FILE

Each session has a setting, one of the application's own, a prepared statement, and (psycopg) a LISTEN; each of its turns
runs the statement again and looks whether all of it is still there. Prints one line of JSON: for every driver, how many
sessions began, how many still live, how many turns went well, and the errors by SQLSTATE (or by the exception's name, for
an end without a word).
"""

import asyncio
import collections
import json
import os
import sys
import threading
import time

import psycopg

try:
    import asyncpg
except ImportError:
    asyncpg = None

URL, STOP = sys.argv[1], sys.argv[2]
SESSIONS = 4
# Longer than a session is watched before its server is asked what it holds, shorter than a failover.
PAUSE = 0.08
STATE = "SELECT current_setting('work_mem') || ' ' || current_setting('app.who')"


def stopped():
    return os.path.exists(STOP)


class Report:
    def __init__(self):
        self.begun = self.alive = self.turns = 0
        self.errors = collections.Counter()
        self.lock = threading.Lock()

    def add(self, **changes):
        with self.lock:
            for name, change in changes.items():
                setattr(self, name, getattr(self, name) + change)

    def failed(self, error):
        # asyncpg wraps the server's last words into an error of its own.
        code = getattr(error.__cause__, "sqlstate", None) or getattr(error, "sqlstate", None)
        with self.lock:
            self.errors[code or f"{type(error).__name__}: {error}"] += 1

    def __repr__(self):
        return json.dumps({name: getattr(self, name) for name in ("begun", "alive", "turns", "errors")})


def with_psycopg(report, number):
    who = f"p{number}"
    connection = psycopg.connect(URL, autocommit=True, prepare_threshold=0)
    report.add(begun=1)
    connection.execute("SET work_mem = '7MB'")
    connection.execute(f"SET app.who = '{who}'")
    connection.execute(f"LISTEN {who}")
    while not stopped():
        time.sleep(PAUSE)
        try:
            held = connection.execute(STATE).fetchone()[0]
            answer = connection.execute("SELECT %s::int + 1", (number,)).fetchone()[0]
            channels = connection.execute("SELECT pg_listening_channels()").fetchone()
        except psycopg.Error as error:
            report.failed(error)
            if connection.closed:
                return
            continue
        if (held, answer, channels) != (f"7MB {who}", number + 1, (who,)):
            raise AssertionError(f"{who} holds {held!r}, {channels!r}, and was answered {answer!r}")
        report.add(turns=1)
    report.add(alive=1)


async def with_asyncpg(report, number):
    who = f"a{number}"
    connection = await asyncpg.connect(URL)
    report.add(begun=1)
    await connection.execute("SET work_mem = '7MB'")
    await connection.execute(f"SET app.who = '{who}'")
    statement = await connection.prepare("SELECT $1::int + 1")
    while not stopped():
        await asyncio.sleep(PAUSE)
        try:
            # From its cache of prepared statements, and by one that was prepared by hand.
            held = await connection.fetchval(STATE)
            answer = await statement.fetchval(number)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            report.failed(error)
            if connection.is_closed():
                return
            continue
        if (held, answer) != (f"7MB {who}", number + 1):
            raise AssertionError(f"{who} holds {held!r} and was answered {answer!r}")
        report.add(turns=1)
    report.add(alive=1)


def main():
    reports = {"psycopg": Report()}
    failures = []

    def guarded(work, *arguments):
        try:
            work(*arguments)
        except Exception as error:  # told below: an exception in a thread ends only the thread
            failures.append(repr(error))

    threads = [threading.Thread(target=guarded, args=(with_psycopg, reports["psycopg"], n)) for n in range(SESSIONS)]
    if asyncpg:
        reports["asyncpg"] = Report()

        async def all_of_asyncpg():
            await asyncio.gather(*(with_asyncpg(reports["asyncpg"], n) for n in range(SESSIONS)))

        threads.append(threading.Thread(target=guarded, args=(asyncio.run, all_of_asyncpg())))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("{" + ", ".join(f'"{name}": {report!r}' for name, report in reports.items()) + "}")
    if failures:
        sys.exit("; ".join(failures))


main()
