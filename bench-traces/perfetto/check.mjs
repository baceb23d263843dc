// check.mjs PERFETTO TRACE ['SQL' ...]: health checks and queries, one JSON line per answer; run by check.sh.
//
// The engine is the UI's worker, `engine_bundle.js` with its wasm. A worker is given a port when it starts, and then speaks
// a byte stream of TraceProcessorRpc messages in both directions (Perfetto's protos/perfetto/trace_processor/
// trace_processor.proto). Here the port is a pair of functions, and each request is answered before it returns.
import fs from 'node:fs';
import path from 'node:path';
import { webcrypto } from 'node:crypto';

const REFUSED = 2, UNHEALTHY = 3, SQL_ERROR = 4;
const APPEND = 1, FINALIZE = 2, QUERY = 3; // TraceProcessorMethod

// Protobuf, as much as the messages need.

function varint(value) {
  const bytes = [];
  for (; value > 127; value = Math.floor(value / 128)) bytes.push(value % 128 + 128);
  return Buffer.from([...bytes, value]);
}
const number = (field, value) => Buffer.concat([varint(field * 8), varint(value)]);
const bytes = (field, value) => Buffer.concat([varint(field * 8 + 2), varint(value.length), value]);

function readVarint(buffer, at) {
  let value = 0n, shift = 0n, byte;
  do {
    byte = buffer[at++];
    value |= BigInt(byte & 127) << shift;
    shift += 7n;
  } while (byte > 127);
  return [BigInt.asIntN(64, value), at];
}

// Fields of a message as [number, value]: a BigInt, or a Buffer for all but varints.
function* fields(buffer) {
  for (let at = 0; at < buffer.length;) {
    let tag, value;
    [tag, at] = readVarint(buffer, at);
    const wire = Number(tag & 7n);
    if (wire === 0) {
      [value, at] = readVarint(buffer, at);
    } else {
      let length = { 1: 8, 5: 4 }[wire];
      if (wire === 2) {
        [length, at] = readVarint(buffer, at);
        length = Number(length);
      }
      value = buffer.subarray(at, at += length);
    }
    yield [Number(tag >> 3n), value];
  }
}
const first = (buffer, field) => [...fields(buffer)].find(([number]) => number === field)?.[1];

// The engine.

async function startEngine(dist) {
  class XMLHttpRequest {
    open(_, url) { this.file = path.join(dist, path.basename(url)); }
    send() { this.response = fs.readFileSync(this.file); }
  }
  const self = { location: { href: '' } };
  const quiet = { log() {}, warn() {}, error() {} };
  // What a worker sees, and no `process`, which would tell of node.
  const worker = {
    self, XMLHttpRequest, crypto: webcrypto, console: quiet, WorkerGlobalScope: Object, process: undefined,
  };
  new Function(...Object.keys(worker), fs.readFileSync(path.join(dist, 'engine_bundle.js'), 'utf8'))(
    ...Object.values(worker));
  let replies = [];
  const port = { postMessage: reply => replies.push(Buffer.from(reply)) };
  self.onmessage({ data: port });
  await new Promise(setImmediate); // The engine is ready in a microtask of its own.

  let sequence = 0;
  return (method, ...body) => {
    const request = Buffer.concat([number(1, sequence++), number(2, method), ...body]);
    replies = [];
    port.onmessage({ data: bytes(1, request) });
    const answers = [...fields(Buffer.concat(replies))].map(([, answer]) => answer);
    for (const answer of answers) {
      const fatal = first(answer, 5);
      if (fatal) throw new Error(fatal.toString());
    }
    return answers;
  };
}

function load(engine, trace) {
  const error = (answers, result, field) => answers.map(answer => first(first(answer, result), field)).find(Boolean);
  const file = fs.openSync(trace, 'r');
  const chunk = Buffer.alloc(16 << 20);
  for (let length; (length = fs.readSync(file, chunk)) > 0;) {
    const refused = error(engine(APPEND, bytes(101, chunk.subarray(0, length))), 201, 2);
    if (refused) throw new Error(refused.toString());
  }
  const refused = error(engine(FINALIZE), 212, 1);
  if (refused) throw new Error(refused.toString());
}

// Cells that a double cannot hold are given as strings.
function query(engine, sql) {
  const columns = [], cells = [];
  for (const answer of engine(QUERY, bytes(103, bytes(1, Buffer.from(sql))))) {
    for (const [field, value] of fields(first(answer, 203))) {
      if (field === 1) columns.push(value.toString());
      else if (field === 2) return { error: value.toString() };
      else if (field === 3) cells.push(...batch(value));
    }
  }
  const rows = [];
  for (let at = 0; at < cells.length; at += columns.length) rows.push(cells.slice(at, at + columns.length));
  return { columns, rows };
}

function* batch(message) {
  const parts = { 1: [], 2: Buffer.alloc(0), 3: Buffer.alloc(0), 5: Buffer.alloc(0) }, blobs = [];
  for (const [field, value] of fields(message)) {
    if (field === 4) blobs.push(value);
    else parts[field] = value;
  }
  const strings = parts[5].toString().split('\0');
  let varints = 0, doubles = 0;
  for (const type of parts[1]) {
    if (type === 1) yield null;
    if (type === 2) {
      let value;
      [value, varints] = readVarint(parts[2], varints);
      yield Number.isSafeInteger(Number(value)) ? Number(value) : value.toString();
    }
    if (type === 3) yield parts[3].readDoubleLE(8 * doubles++);
    if (type === 4) yield strings.shift();
    if (type === 5) yield blobs.shift().toString('hex');
  }
}

// Each lists what is wrong: no row, no fault. Most of these faults appear in no statistics of the engine.
const CHECKS = {
  'import errors and data losses':
    `select name, idx, severity, source, value from stats where severity in ('error', 'data_loss') and value > 0`,
  'slices without an end': 'select id, name from slice where dur = -1',
  'slices without a name': `select id from slice where name is null or name = ''`,
  'deeper than 512 levels': 'select id, name, depth from slice where depth is null or depth > 511',
  'not one level below the parent':
    `select c.id, c.name, c.depth from slice c left join slice p on p.id = c.parent_id
     where c.depth != ifnull(p.depth + 1, 0) or c.track_id != ifnull(p.track_id, c.track_id)`,
  'outside the parent':
    `select c.id, c.name from slice c join slice p on p.id = c.parent_id
     where c.ts < p.ts or c.ts + c.dur > p.ts + p.dur`,
  'overlapping on one level':
    `select id, name from (select *, max(ts + dur) over (partition by track_id, depth order by ts, id
       rows between unbounded preceding and 1 preceding) as previous from slice) where ts < previous`,
};

const SUMMARY = `select count(*) as slices, max(depth) as max_depth, count(distinct track_id) as tracks,
  (select count(*) from thread where utid) as threads, min(ts) as from_ns, max(ts + dur) as to_ns from slice`;

const [perfetto, trace, ...queries] = process.argv.slice(2);
if (!trace) {
  console.error("usage: check.sh TRACE ['SQL' ...]");
  process.exit(1);
}
const say = answer => fs.writeSync(1, JSON.stringify(answer) + '\n');
const dist = path.join(perfetto, fs.readdirSync(perfetto).find(name => /^v\d/.test(name)));
const engine = await startEngine(dist);
try {
  load(engine, trace);
} catch (error) {
  say({ refused: error.message.split('\n')[0] });
  process.exit(REFUSED);
}
const summary = query(engine, SUMMARY);
say(Object.fromEntries(summary.columns.map((column, index) => [column, summary.rows[0][index]])));
let code = 0;
for (const [check, sql] of Object.entries(CHECKS)) {
  const { error, columns, rows } = query(engine, `${sql} limit 10`);
  if (error) throw new Error(`${check}: ${error}`);
  if (rows.length > 0) code = UNHEALTHY;
  say(rows.length > 0 ? { check, ok: false, columns, rows } : { check, ok: true });
}
for (const sql of queries) {
  const answer = query(engine, sql);
  if (answer.error) code = SQL_ERROR;
  say(answer);
}
process.exit(code);
