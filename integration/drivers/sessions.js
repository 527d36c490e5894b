// Sessions by node-pg, as those of sessions.py: node sessions.js URL FILE
//
// A statement with a name is prepared once; others are parsed at each use, as is the driver's default.
"use strict";

const fs = require("node:fs");
const assert = require("node:assert");
const { setTimeout: sleep } = require("node:timers/promises");
const { Client } = require("pg");

const [url, stop] = process.argv.slice(2);
const SESSIONS = 4;
const PAUSE_MS = 80;
const seen = { begun: 0, alive: 0, turns: 0, written: 0, errors: {}, in_blocks: {} };

async function session(number) {
  const who = `node${number}`;
  const client = new Client({ connectionString: url });
  let ended = false;
  // Told a second time, by the query that waits.
  client.on("error", () => {});
  client.on("end", () => { ended = true; });
  await client.connect();
  await client.query("SET work_mem = '7MB'");
  await client.query(`SET app.who = '${who}'`);
  const first = async (query) => (await client.query({ rowMode: "array", ...query })).rows[0][0];
  const write = (values) => client.query("INSERT INTO turns VALUES ('node-pg', $1, $2, $3)", values);
  seen.begun++;
  for (let turn = 1; !fs.existsSync(stop); turn++) {
    await sleep(PAUSE_MS);
    let where = seen.errors;
    try {
      const state = "SELECT current_setting('work_mem') || ' ' || current_setting('app.who')";
      assert.equal(await first({ name: "state", text: state }), `7MB ${who}`);
      assert.equal(await first({ text: "SELECT $1::int + 1", values: [number] }), number + 1);
      await write([number, turn, "alone"]);
      seen.written++;
      where = seen.in_blocks;
      await client.query("BEGIN");
      await write([number, turn, "in a block"]);
      const text = "SELECT count(*)::int FROM turns WHERE (driver, session, turn) = ('node-pg', $1, $2)";
      assert.equal(await first({ name: "rows", text, values: [number, turn] }), 2);
      await client.query("COMMIT");
      seen.written++;
      seen.turns++;
    } catch (error) {
      if (error instanceof assert.AssertionError) throw error;
      const code = error.code ?? error.message;
      where[code] = (where[code] ?? 0) + 1;
      if (ended) return;
      if (where === seen.in_blocks) await client.query("ROLLBACK");
    }
  }
  seen.alive++;
  await client.end();
}

Promise.all([...Array(SESSIONS).keys()].map(session)).then(() => {
  console.log(JSON.stringify({ "node-pg": seen }));
}, (failure) => {
  console.error(JSON.stringify(seen), failure);
  process.exit(1);
});
