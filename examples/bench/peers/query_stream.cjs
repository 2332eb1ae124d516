// The upload as one would write it by hand: a query stream, undici, 8 requests in flight.
//
// No journal, no watermark, no retries: it stops at the first problem. Needs pg, pg-query-stream, undici.

const crypto = require('node:crypto');
const { Client } = require('pg');
const QueryStream = require('pg-query-stream');
const { Pool } = require('undici');

const PATH = '/open/v3/account/treasuryBalance';
const IN_FLIGHT = 8;
const { DATABASE_URL, ELVEN_API_URL, ELVEN_API_KEY, ELVEN_API_SECRET } = process.env;
const ROWS = `select entity_id, entity_account_id, currency, captured_at, balance
                from ledger.balance_snapshots order by entity_id, change_xid, id`;

function headers() {
  const timestamp = String(Date.now());
  const mac = crypto.createHmac('sha256', ELVEN_API_SECRET).update(timestamp + 'POST' + PATH);
  return {
    'elven-api-key': ELVEN_API_KEY,
    'elven-api-timestamp': timestamp,
    'elven-api-sign': mac.digest('base64'),
    'content-type': 'application/json',
  };
}

// "sv-SE" writes dates as the API wants them.
const clock = (timeZone) => new Intl.DateTimeFormat('sv-SE', { timeZone, dateStyle: 'short', timeStyle: 'medium' });

// A numeric comes as text, which is put into the JSON as it stands.
function body(rows, format) {
  const records = rows.map((row) =>
    `{"entityAccountId":${JSON.stringify(row.entity_account_id)},"currency":${JSON.stringify(row.currency)},` +
    `"datetime":"${format.format(row.captured_at)}","balance":${row.balance}}`);
  return `[${records.join(',')}]`;
}

async function main() {
  const client = new Client(DATABASE_URL);
  await client.connect();
  const api = new Pool(ELVEN_API_URL, { connections: IN_FLIGHT });
  const entities = await client.query('select entity_id, timezone from elven_sync.entities');
  const clocks = new Map(entities.rows.map((row) => [row.entity_id, clock(row.timezone)]));
  const inFlight = new Set();
  const send = async (rows) => {
    const content = body(rows, clocks.get(rows[0].entity_id));
    const answer = await api.request({ path: PATH, method: 'POST', headers: headers(), body: content });
    if ((await answer.body.json()).success !== true) throw new Error('a batch was not accepted');
  };
  const start = async (rows) => {
    if (inFlight.size >= IN_FLIGHT) await Promise.race(inFlight);
    const sending = send(rows).finally(() => inFlight.delete(sending));
    inFlight.add(sending);
  };
  let batch = [];
  for await (const row of client.query(new QueryStream(ROWS, [], { batchSize: 10000, highWaterMark: 10000 }))) {
    if (batch.length === 1000 || (batch.length > 0 && batch[0].entity_id !== row.entity_id)) {
      await start(batch);
      batch = [];
    }
    batch.push(row);
  }
  if (batch.length > 0) await start(batch);
  await Promise.all(inFlight);
  await api.close();
  await client.end();
}

main();
