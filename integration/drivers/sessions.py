"""Holds sessions of Python's drivers and uses them until a file appears: sessions.py URL FILE

Programs of other languages beside this one do the same with theirs. Each session has a setting, one of the application's
own, prepared statements, and (psycopg) a LISTEN. Each of its turns looks whether all of it is still there, writes a row by a
statement of its own, and writes another one in a transaction block. Prints one line of JSON: for every driver, how many
sessions began, how many still live, how many turns went well, how many rows were written as far as it was told, and the
errors by SQLSTATE (or in words, where there is none), those within transaction blocks apart.
"""

import asyncio
import collections
import contextlib
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
        self.begun = self.alive = self.turns = self.written = 0
        self.errors = collections.Counter()
        self.in_blocks = collections.Counter()
        self.lock = threading.Lock()

    def add(self, **changes):
        with self.lock:
            for name, change in changes.items():
                setattr(self, name, getattr(self, name) + change)

    def failed(self, errors, error):
        # asyncpg wraps the server's last words into an error of its own.
        code = getattr(error.__cause__, "sqlstate", None) or getattr(error, "sqlstate", None)
        with self.lock:
            errors[code or f"{type(error).__name__}: {error}"] += 1

    def seen(self):
        return {name: value for name, value in vars(self).items() if name != "lock"}


def expect(expected, found):
    if found != expected:
        raise AssertionError(f"{expected} was expected, and {found} was found")


def with_psycopg(report, number, driver="psycopg", together=lambda connection: contextlib.nullcontext()):
    """`together`: in what statements are sent that do not wait for each other."""
    who = f"{driver}{number}"
    write = "INSERT INTO turns VALUES (%s, %s, %s, %s)"
    connection = psycopg.connect(URL, autocommit=True, prepare_threshold=0)
    connection.execute("SET work_mem = '7MB'")
    connection.execute(f"SET app.who = '{who}'")
    connection.execute(f"LISTEN {who}")
    report.add(begun=1)
    turn = 0
    while not stopped():
        time.sleep(PAUSE)
        turn += 1
        errors = report.errors
        try:
            with together(connection):
                held = connection.execute(STATE)
                answer = connection.execute("SELECT %s::int + 1", (number,))
                channels = connection.execute("SELECT pg_listening_channels()")
            # Behind the others, it would be committed by the Sync. An error in answer to that, as of a deferred constraint,
            # leaves psycopg's pipelines out of step, with PostgreSQL alone too.
            connection.execute(write, (driver, number, turn, "alone"))
            report.add(written=1)
            expect((f"7MB {who}", number + 1, who), tuple(c.fetchone()[0] for c in (held, answer, channels)))
            errors = report.in_blocks
            with together(connection), connection.transaction():
                connection.execute(write, (driver, number, turn, "in a block"))
                rows = connection.execute("SELECT count(*) FROM turns WHERE (driver, session, turn) = (%s, %s, %s)",
                                          (driver, number, turn))
            report.add(written=1)
            expect(2, rows.fetchone()[0])
        except psycopg.Error as error:
            report.failed(errors, error)
            if connection.closed:
                return
            continue
        report.add(turns=1)
    report.add(alive=1)


def in_pipelines(report, number):
    with_psycopg(report, number, "pipelines", lambda connection: connection.pipeline())


async def with_asyncpg(report, number):
    who = f"asyncpg{number}"
    write = "INSERT INTO turns VALUES ('asyncpg', $1, $2, $3)"
    connection = await asyncpg.connect(URL)
    await connection.execute("SET work_mem = '7MB'")
    await connection.execute(f"SET app.who = '{who}'")
    statement = await connection.prepare("SELECT $1::int + 1")
    report.add(begun=1)
    turn = 0
    while not stopped():
        await asyncio.sleep(PAUSE)
        turn += 1
        errors = report.errors
        try:
            # From its cache of prepared statements, and by one that was prepared by hand.
            held = await connection.fetchval(STATE)
            answer = await statement.fetchval(number)
            expect((f"7MB {who}", number + 1), (held, answer))
            await connection.execute(write, number, turn, "alone")
            report.add(written=1)
            errors = report.in_blocks
            async with connection.transaction():
                await connection.execute(write, number, turn, "in a block")
                rows = await connection.fetchval(
                    "SELECT count(*) FROM turns WHERE (driver, session, turn) = ('asyncpg', $1, $2)", number, turn)
            report.add(written=1)
            expect(2, rows)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            report.failed(errors, error)
            if connection.is_closed():
                return
            continue
        report.add(turns=1)
    report.add(alive=1)


def main():
    reports = {"psycopg": Report(), "pipelines": Report()}
    failures = []

    def guarded(work, *arguments):
        try:
            work(*arguments)
        except Exception as error:  # told below: an exception in a thread ends only the thread
            failures.append(repr(error))

    threads = [
        threading.Thread(target=guarded, args=(work, reports[driver], number))
        for driver, work in (("psycopg", with_psycopg), ("pipelines", in_pipelines))
        for number in range(SESSIONS)
    ]
    if asyncpg:
        reports["asyncpg"] = Report()

        async def all_of_asyncpg():
            await asyncio.gather(*(with_asyncpg(reports["asyncpg"], n) for n in range(SESSIONS)))

        threads.append(threading.Thread(target=guarded, args=(asyncio.run, all_of_asyncpg())))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({driver: report.seen() for driver, report in reports.items()}))
    if failures:
        sys.exit("; ".join(failures))


main()
